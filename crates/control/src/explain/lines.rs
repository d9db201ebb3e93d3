//! The lines of an explanation: no line twice, and those that differ in the instance alone as one.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use api::wire::{Because, Explanation};
use model::control::Reason;
use model::ids::{NodeName, ProjectName};
use model::signals::Event;

use crate::views::alike;

/// Events of one answer.
const EVENTS_MOST: usize = 30;

#[derive(Default)]
pub(super) struct Lines {
    /// What now stands in the way: told first.
    pub now: Vec<Because>,
    /// What was decided and what happened.
    pub before: Vec<Because>,
}

pub fn because(at: jiff::Timestamp, from: &str, reason: Reason) -> Because {
    Because {
        at,
        about: None,
        others: 0,
        from: from.to_owned(),
        reason,
    }
}

impl Lines {
    pub fn have(&self, reason: &Reason) -> bool {
        let mut all = self.now.iter().chain(&self.before);
        all.any(|known| known.reason == *reason)
    }

    /// Takes up the newest events that are about it, or that name it.
    pub fn hear(
        &mut self,
        events: &[Event],
        project: &ProjectName,
        subject: &str,
        is_about: impl Fn(&Event) -> bool,
    ) {
        let named = format!("{project}/{subject}");
        let is_its = |event: &&Event| {
            let is_of_project = event.project.as_ref().is_none_or(|of| of == project);
            is_of_project && (is_about(event) || names(&event.reason, &named))
        };
        let about = |event: &Event| (event.subject != subject).then(|| event.subject.clone());
        self.take(events.iter().rev().filter(is_its), about);
    }

    pub fn hear_node(&mut self, events: &[Event], name: &NodeName) {
        let about = |event: &Event| match &event.project {
            Some(project) => Some(format!("{project}/{}", event.subject)),
            None => (event.subject != name.as_str()).then(|| event.subject.clone()),
        };
        let own = events.iter().rev();
        let own = own.filter(|event| event.node.as_ref() == Some(name));
        self.take(own, about);
    }

    /// What a decision says is not told again as the event that it was, nor what an instance lacked a moment ago if it still does.
    fn take<'e>(
        &mut self,
        newest_first: impl Iterator<Item = &'e Event>,
        about: impl Fn(&Event) -> Option<String>,
    ) {
        let decided = self.now.iter().chain(&self.before);
        let decided: BTreeSet<_> = decided
            .map(|line| (line.about.clone(), line.reason.message.clone()))
            .collect();
        let lacking = self.now.iter();
        let lacking: BTreeSet<_> = lacking
            .map(|line| (line.about.clone(), line.reason.code.clone()))
            .collect();
        let news = newest_first.map(|event| (event, about(event)));
        let news = news.filter(|(event, about)| {
            let reason = &event.reason;
            !decided.contains(&(about.clone(), reason.message.clone()))
                && !lacking.contains(&(about.clone(), reason.code.clone()))
        });
        let told = news.take(EVENTS_MOST).map(|(event, about)| Because {
            about,
            ..because(event.at, "event", event.reason.clone())
        });
        self.before.extend(told.collect::<Vec<_>>());
    }

    pub fn told(mut self, subject: &str, now: String) -> Explanation {
        self.now.sort_by_key(|line| Reverse(line.at));
        self.before.sort_by_key(|line| Reverse(line.at));
        let now_lines = alike(self.now, |line| {
            (line.reason.code.clone(), line.reason.message.clone())
        });
        let now_lines = now_lines
            .into_iter()
            .map(|(line, others)| Because { others, ..line });
        Explanation {
            subject: subject.to_owned(),
            now,
            because: now_lines.chain(self.before).collect(),
        }
    }
}

/// Whether a reason's sentence names `project/name` as a whole word.
fn names(reason: &Reason, named: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '/';
    reason
        .message
        .split(|c: char| !is_word(c))
        .any(|word| word == named)
}
