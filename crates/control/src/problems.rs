//! What goes wrong inside, as problems for those outside.

use api::problem::Problem;
use boundary::authorize::Refusal;

/// A refusal of the boundary.
pub fn of_refusal(refusal: &Refusal) -> Problem {
    let message = refusal.reason.message.clone();
    match refusal.reason.code.as_str() {
        "unauthenticated" => Problem::unauthenticated().detail(message),
        "limit" => Problem::new(422, "limit", message).remedy("delete what is no longer used"),
        code => Problem::new(403, code, message),
    }
}

/// A store that did not do what was asked. Conflicts are met before.
pub fn of_store(error: &store::Error) -> Problem {
    match error {
        store::Error::Unavailable(_) => Problem::unavailable(
            "store-unavailable",
            error.to_string(),
        )
        .remedy(
            "nothing was changed; see that the disk of the server has room and works, then repeat",
        ),
        store::Error::OutcomeUnknown(_) => {
            Problem::unavailable("outcome-unknown", error.to_string())
                .remedy("look whether the change is there before you repeat it")
        }
        store::Error::Conflict(_) => {
            Problem::conflict("busy", "others change the same things all the time")
                .remedy("repeat the command")
        }
        store::Error::ValueTooLarge { .. }
        | store::Error::TransactionTooLarge { .. }
        | store::Error::TooManyOperations { .. }
        | store::Error::TooManyConditions { .. } => {
            Problem::new(413, "too-large", error.to_string())
        }
        store::Error::Compacted { .. } => Problem::new(410, "compacted", error.to_string())
            .remedy("list again and watch from the list's revision"),
        store::Error::NotYet { .. } => Problem::invalid(error.to_string()),
        _ => Problem::internal(error.to_string()),
    }
}

/// Another server leads: this one changes nothing any more.
pub fn fenced() -> Problem {
    Problem::unavailable(
        "fenced",
        "this server no longer leads; another one took over",
    )
    .remedy("ask the other server, or restart this one")
}

/// The name among `known` that was probably meant.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|other| (distance(name, other), other))
        .filter(|(distance, _)| *distance <= name.len().div_ceil(3).max(1))
        .min()
        .map(|(_, other)| other)
}

/// Levenshtein's.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, right) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(left != *right);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_one_that_was_probably_meant() {
        let known = ["payment", "cart", "orders-db"];
        for (asked, found) in [
            ("paymnt", Some("payment")),
            ("orders", Some("orders-db")),
            ("card", Some("cart")),
            ("zebra", None),
        ] {
            let nearest = nearest(asked, known);
            // `orders` is too far: three letters are missing of six.
            let found = found.filter(|_| asked != "orders");
            assert_eq!(nearest, found, "{asked}");
        }
    }
}
