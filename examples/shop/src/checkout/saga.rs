//! The steps of one attempt, as a pure function: what is being done, what came of it, what is done next.
//!
//! ```text
//! Reserving ──▶ Authorizing ──▶ Placing ──▶ Ended(Completed)
//!     │              │ declined ──▶ Releasing ──▶ Ended(Refused)
//!     │ out of stock
//!     ├───────▶ Cancelling ──────────────────▶ Releasing ──▶ Ended(Refused)
//!     │ any of the three unanswered, or given up by another owner
//!     └───────▶ Cancelling ──▶ Voiding ──────▶ Releasing ──▶ Ended(Undone)
//!                   │ it is placed already
//!                   └───────▶ Ended(Completed)
//! ```
//!
//! A step that wasn't answered may have been done, may not, or may still be on its way. So undoing leaves a tombstone under the
//! attempt's key, and what comes after it is refused. The order is cancelled first: once it can't be placed any more, money and stock
//! can be given back, and if it is placed (by another owner of the same attempt, or by a call that came late), nothing is undone. Undoing that isn't answered is left to a later owner: `Left`.

use serde_json::Value;

/// What is being done.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    Reserving,
    Authorizing(Reservation),
    Placing(Reservation, PaymentId),
    Cancelling(Ending),
    Voiding(Reason),
    Releasing(Ending),
    Ended(Ending),
    /// Somebody takes it up later.
    Left(Reason),
}

pub type PaymentId = String;
/// A sentence for the ledger.
pub type Reason = String;

#[derive(Debug, Clone, PartialEq)]
pub struct Reservation {
    pub lines: Value,
    pub total_cents: i64,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Placed {
    pub order_id: String,
    pub total_cents: i64,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Ending {
    Completed(Placed),
    Refused(Refused),
    /// For a reason that is no one's fault who asked.
    Undone(Reason),
}

#[derive(Debug, Clone, PartialEq)]
pub enum Refused {
    OutOfStock(Vec<String>),
    NoSuchProduct(Vec<String>),
    Declined,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Reserved(Reservation),
    OutOfStock(Vec<String>),
    NoSuchProduct(Vec<String>),
    Authorized(PaymentId),
    Declined,
    Placed(Placed),
    Cancelled,
    Voided,
    Released,
    /// Under this key the step can't be done any more.
    GivenUp,
    Unanswered(Reason),
}

impl State {
    /// An attempt that somebody else began, taken up without the buyer: it is undone, unless it is placed.
    pub fn taken_over(reason: Option<Reason>) -> Self {
        let reason = reason.unwrap_or_else(|| "its owner is gone".to_owned());
        Self::Cancelling(Ending::Undone(reason))
    }

    /// What is done in this state; nothing if it is over.
    pub fn name(&self) -> Option<&'static str> {
        Some(match self {
            Self::Reserving => "reserve",
            Self::Authorizing(_) => "authorize",
            Self::Placing(..) => "place",
            Self::Cancelling(_) => "cancel",
            Self::Voiding(_) => "void",
            Self::Releasing(_) => "release",
            Self::Ended(_) | Self::Left(_) => return None,
        })
    }

    pub fn step(self, event: Event) -> Self {
        use Ending::{Completed, Refused as Refusing, Undone};
        let doing = self.name().unwrap_or_default();
        match (self, event) {
            (Self::Reserving, Event::Reserved(reservation)) => Self::Authorizing(reservation),
            // An earlier try, or another owner, may still reserve: what was refused is closed as well.
            (Self::Reserving, Event::OutOfStock(skus)) => {
                Self::Cancelling(Refusing(Refused::OutOfStock(skus)))
            }
            (Self::Reserving, Event::NoSuchProduct(skus)) => {
                Self::Cancelling(Refusing(Refused::NoSuchProduct(skus)))
            }
            // The provider declines a key for all owners and for ever: no order can come of it.
            (Self::Authorizing(reservation), Event::Authorized(payment)) => {
                Self::Placing(reservation, payment)
            }
            (Self::Authorizing(_), Event::Declined) => Self::Releasing(Refusing(Refused::Declined)),
            (Self::Placing(..) | Self::Cancelling(_), Event::Placed(placed)) => {
                Self::Ended(Completed(placed))
            }
            (Self::Cancelling(Undone(reason)), Event::Cancelled) => Self::Voiding(reason),
            (Self::Cancelling(ending), Event::Cancelled) => Self::Releasing(ending),
            (Self::Voiding(reason), Event::Voided) => Self::Releasing(Undone(reason)),
            (Self::Releasing(ending), Event::Released) => Self::Ended(ending),
            (state @ (Self::Ended(_) | Self::Left(_)), _) => state,
            (state, event) => state.failed(&explain(doing, &event)),
        }
    }

    /// Forward turns back; back is left for later.
    fn failed(self, why: &str) -> Self {
        match self {
            Self::Reserving | Self::Authorizing(_) | Self::Placing(..) => {
                Self::Cancelling(Ending::Undone(why.to_owned()))
            }
            Self::Voiding(reason)
            | Self::Cancelling(Ending::Undone(reason))
            | Self::Releasing(Ending::Undone(reason)) => Self::Left(reason),
            _ => Self::Left(why.to_owned()),
        }
    }
}

fn explain(doing: &str, event: &Event) -> Reason {
    match event {
        Event::Unanswered(why) => format!("{doing} was not answered: {why}"),
        Event::GivenUp => format!("{doing} was given up by another owner"),
        other => format!("{doing} was answered with {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reservation() -> Reservation {
        Reservation {
            lines: Value::Null,
            total_cents: 5,
        }
    }

    fn placed() -> Placed {
        Placed {
            order_id: "o".to_owned(),
            total_cents: 5,
        }
    }

    fn unanswered() -> Event {
        Event::Unanswered("late".to_owned())
    }

    /// The names of what is done, and how it ends.
    fn run(mut state: State, events: Vec<Event>) -> (Vec<&'static str>, State) {
        let mut names = Vec::new();
        for event in events {
            names.extend(state.name());
            state = state.step(event);
        }
        (names, state)
    }

    #[test]
    fn every_way_through() {
        let reserved = || Event::Reserved(reservation());
        let authorized = || Event::Authorized("p".to_owned());
        let undone = |reason: &str| State::Ended(Ending::Undone(reason.to_owned()));
        let refused = |refused| State::Ended(Ending::Refused(refused));
        let skus = || vec!["a".to_owned()];
        let table = [
            (
                vec![reserved(), authorized(), Event::Placed(placed())],
                "reserve authorize place",
                State::Ended(Ending::Completed(placed())),
            ),
            (
                vec![Event::OutOfStock(skus()), Event::Cancelled, Event::Released],
                "reserve cancel release",
                refused(Refused::OutOfStock(skus())),
            ),
            (
                vec![
                    Event::NoSuchProduct(skus()),
                    Event::Cancelled,
                    Event::Released,
                ],
                "reserve cancel release",
                refused(Refused::NoSuchProduct(skus())),
            ),
            (
                vec![reserved(), Event::Declined, Event::Released],
                "reserve authorize release",
                refused(Refused::Declined),
            ),
            (
                vec![
                    unanswered(),
                    Event::Cancelled,
                    Event::Voided,
                    Event::Released,
                ],
                "reserve cancel void release",
                undone("reserve was not answered: late"),
            ),
            (
                vec![
                    reserved(),
                    unanswered(),
                    Event::Cancelled,
                    Event::Voided,
                    Event::Released,
                ],
                "reserve authorize cancel void release",
                undone("authorize was not answered: late"),
            ),
            (
                vec![
                    reserved(),
                    authorized(),
                    unanswered(),
                    Event::Cancelled,
                    Event::Voided,
                    Event::Released,
                ],
                "reserve authorize place cancel void release",
                undone("place was not answered: late"),
            ),
            (
                vec![
                    reserved(),
                    authorized(),
                    unanswered(),
                    Event::Placed(placed()),
                ],
                "reserve authorize place cancel",
                State::Ended(Ending::Completed(placed())),
            ),
            (
                vec![
                    reserved(),
                    Event::GivenUp,
                    Event::Cancelled,
                    Event::Voided,
                    Event::Released,
                ],
                "reserve authorize cancel void release",
                undone("authorize was given up by another owner"),
            ),
            (
                vec![reserved(), unanswered(), Event::Cancelled, unanswered()],
                "reserve authorize cancel void",
                State::Left("authorize was not answered: late".to_owned()),
            ),
            (
                vec![reserved(), Event::Declined, unanswered()],
                "reserve authorize release",
                State::Left("release was not answered: late".to_owned()),
            ),
        ];
        for (events, names, ending) in table {
            let (done, state) = run(State::Reserving, events);
            assert_eq!(done.join(" "), names);
            assert_eq!(state, ending, "{names}");
        }
    }

    /// Whatever is answered, in whatever order: money and stock are given back only when the order can't be placed any more.
    #[test]
    fn nothing_is_voided_before_the_order_is_cancelled() {
        let events = [
            Event::Reserved(reservation()),
            Event::OutOfStock(Vec::new()),
            Event::Authorized("p".to_owned()),
            Event::Declined,
            Event::Placed(placed()),
            Event::Cancelled,
            Event::Voided,
            Event::Released,
            Event::GivenUp,
            unanswered(),
        ];
        let mut open = vec![(State::Reserving, Vec::new())];
        let mut seen = 0;
        while let Some((state, past)) = open.pop() {
            let Some(doing) = state.name() else { continue };
            for event in &events {
                let mut past: Vec<(&str, Event)> = past.clone();
                past.push((doing, event.clone()));
                let next = state.clone().step(event.clone());
                let declined = past.contains(&("authorize", Event::Declined));
                if matches!(next, State::Voiding(_) | State::Releasing(_)) && !declined {
                    assert!(past.contains(&("cancel", Event::Cancelled)), "{past:?}");
                }
                if matches!(next, State::Ended(Ending::Undone(_))) {
                    assert!(past.contains(&("void", Event::Voided)), "{past:?}");
                    assert!(past.contains(&("release", Event::Released)), "{past:?}");
                }
                if matches!(next, State::Ended(Ending::Completed(_))) {
                    assert!(
                        past.iter()
                            .any(|(_, event)| *event == Event::Placed(placed()))
                    );
                }
                assert!(
                    past.len() <= 6,
                    "an attempt is over after six steps: {past:?}"
                );
                seen += 1;
                open.push((next, past));
            }
        }
        assert!(seen > 200, "only {seen} were tried");
    }
}
