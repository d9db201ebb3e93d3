//! Which records of the audit log somebody wants. The log itself is in the store, as a chain.

use jiff::Timestamp;
use model::boundary::{AuditRecord, PrincipalName};

/// Which records a reader wants. Empty: all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    pub principal: Option<PrincipalName>,
    /// The whole action, or its beginning up to a dot: `secret` finds `secret.set`.
    pub action: Option<String>,
    /// The whole of what was changed, or its beginning up to a slash: `shop` finds `shop/checkout`.
    pub on: Option<String>,
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
}

impl Filter {
    pub fn matches(&self, record: &AuditRecord) -> bool {
        let principal = |wanted: &PrincipalName| *wanted == record.principal;
        self.principal.as_ref().is_none_or(principal)
            && is_at_or_below(self.action.as_deref(), &record.action, '.')
            && is_at_or_below(self.on.as_deref(), &record.on, '/')
            && self.since.is_none_or(|since| record.at >= since)
            && self.until.is_none_or(|until| record.at < until)
    }
}

fn is_at_or_below(wanted: Option<&str>, text: &str, separator: char) -> bool {
    let below = |rest: &str| rest.is_empty() || rest.starts_with(separator);
    wanted.is_none_or(|wanted| text.strip_prefix(wanted).is_some_and(below))
}

#[cfg(test)]
mod tests {
    use model::boundary::AuditOutcome;

    use super::*;

    fn record(second: i64) -> AuditRecord {
        AuditRecord {
            sequence: None,
            at: Timestamp::from_second(second).unwrap(),
            principal: PrincipalName("admin:root".to_owned()),
            action: "apply".to_owned(),
            on: format!("shop/service-{second}"),
            outcome: AuditOutcome::Done,
            times: 1,
            detail: Vec::new(),
        }
    }

    #[test]
    fn filters_choose() {
        let set = AuditRecord {
            action: "secret.set".to_owned(),
            on: "bank/key".to_owned(),
            principal: PrincipalName("node:a".to_owned()),
            ..record(2)
        };
        let by = |change: &dyn Fn(&mut Filter)| {
            let mut filter = Filter::default();
            change(&mut filter);
            [record(1), set.clone(), record(3)]
                .iter()
                .filter(|record| filter.matches(record))
                .map(|record| record.at.as_second())
                .collect::<Vec<_>>()
        };
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(by(&|_| ()), [1, 2, 3]);
        assert_eq!(by(&|filter| filter.action = text("secret")), [2]);
        assert_eq!(by(&|filter| filter.action = text("sec")), [0; 0]);
        assert_eq!(by(&|filter| filter.on = text("shop")), [1, 3]);
        assert_eq!(by(&|filter| filter.on = text("shop/service-3")), [3]);
        assert_eq!(by(&|filter| filter.since = Some(set.at)), [2, 3]);
        assert_eq!(by(&|filter| filter.until = Some(set.at)), [1]);
        let node = PrincipalName("node:a".to_owned());
        assert_eq!(by(&|filter| filter.principal = Some(node.clone())), [2]);
    }
}
