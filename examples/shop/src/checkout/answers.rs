//! What the buyer is told of an attempt, and what its ledger says. The same end is always told the same.

use serde_json::{Value, json};

use super::saga::{Ending, Refused};

/// An answer as it is kept for the next time the key comes.
#[derive(Debug, Clone, PartialEq)]
pub struct Said {
    pub status: u16,
    pub body: Value,
}

pub fn said(ending: &Ending) -> Said {
    let (status, body) = match ending {
        Ending::Completed(placed) => (
            201,
            json!({"order_id": placed.order_id, "total_cents": placed.total_cents}),
        ),
        Ending::Refused(Refused::OutOfStock(skus)) => {
            (409, json!({"error": "out of stock", "skus": skus}))
        }
        Ending::Refused(Refused::NoSuchProduct(skus)) => {
            (400, json!({"error": "no such product", "skus": skus}))
        }
        Ending::Refused(Refused::Declined) => (402, json!({"error": "the card was declined"})),
        Ending::Undone(_) => (
            503,
            json!({"error": "this attempt could not be done and was undone; try again with a new key", "outcome": "not charged"}),
        ),
    };
    Said { status, body }
}

/// For the ledger; what is completed needs none.
pub fn reason(ending: &Ending) -> Option<String> {
    match ending {
        Ending::Completed(_) => None,
        Ending::Refused(Refused::OutOfStock(skus)) => {
            Some(format!("out of stock: {}", skus.join(", ")))
        }
        Ending::Refused(Refused::NoSuchProduct(skus)) => {
            Some(format!("no such product: {}", skus.join(", ")))
        }
        Ending::Refused(Refused::Declined) => Some("the card was declined".to_owned()),
        Ending::Undone(reason) => Some(reason.clone()),
    }
}
