//! The reference model: what a store is, without versions of the past, threads or disks; and the judge of a history.

use std::collections::BTreeMap;

use store::{Change, Conflict, Event, Operation, Record, Revision, Transaction};

/// The records of one revision.
pub type State = BTreeMap<String, Record>;

/// What a client asked, what it was told, and between which revisions that must have happened.
#[derive(Clone, Debug)]
pub struct Observation {
    /// The newest revision that somebody had been told before the question.
    pub floor: u64,
    /// The newest revision after the answer.
    pub ceiling: u64,
    pub answer: Answer,
}

#[derive(Clone, Debug)]
pub enum Answer {
    Committed {
        transaction: Transaction,
        revision: Revision,
    },
    Refused {
        transaction: Transaction,
        conflict: Conflict,
    },
    Got {
        key: String,
        record: Option<Record>,
    },
    Listed {
        revision: Revision,
        records: Vec<Record>,
    },
}

/// What a watcher saw from a revision on, after it listed if it had to.
#[derive(Clone, Debug)]
pub struct Watched {
    pub prefix: String,
    pub after: Revision,
    pub snapshot: Option<Vec<Record>>,
    pub changes: Vec<Change>,
    /// Up to where it claims to have seen everything.
    pub through: Revision,
}

/// The history as the model knows it.
pub struct Judged {
    /// By revision.
    states: Vec<State>,
    /// By revision; the first is empty.
    changes: Vec<Change>,
}

/// The first contradiction between what was told and one order of all transactions.
pub fn judge(
    observations: &[Observation],
    watched: &[Watched],
    newest: Revision,
) -> Result<(), String> {
    let judged = replay(observations, newest)?;
    observations
        .iter()
        .try_for_each(|observation| judged.check(observation))?;
    watched
        .iter()
        .try_for_each(|watched| judged.check_watch(watched))
}

/// Applies the committed transactions in the order of their revisions.
fn replay(observations: &[Observation], newest: Revision) -> Result<Judged, String> {
    let mut candidates: BTreeMap<u64, Vec<(&Observation, &Transaction)>> = BTreeMap::new();
    for observation in observations {
        if let Answer::Committed {
            transaction,
            revision,
        } = &observation.answer
        {
            candidates
                .entry(revision.number())
                .or_default()
                .push((observation, transaction));
        }
    }
    let empty = Change {
        revision: Revision::ZERO,
        events: Vec::new(),
    };
    let mut judged = Judged {
        states: vec![State::new()],
        changes: vec![empty],
    };
    for number in 1..=newest.number() {
        let before = judged.states.last().expect("there is a first state");
        let told = candidates
            .get(&number)
            .map(Vec::as_slice)
            .unwrap_or_default();
        let maker = told.iter().find(|(observation, maker)| {
            let others_changed_nothing = |state: &State| {
                told.iter()
                    .all(|(_, other)| std::ptr::eq(*other, *maker) || changes_nothing(state, other))
            };
            observation.floor < number
                && makes(before, maker, number)
                    .as_ref()
                    .is_some_and(others_changed_nothing)
        });
        let (_, transaction) = maker.ok_or(format!(
            "revision {number} was made by nobody, by two, or too late"
        ))?;
        let (state, change) = apply(before, transaction, number);
        judged.states.push(state);
        judged.changes.push(change);
    }
    Ok(judged)
}

impl Judged {
    /// Whether some moment between question and answer explains the answer.
    fn check(&self, observation: &Observation) -> Result<(), String> {
        let moments = observation.floor as usize..=observation.ceiling as usize;
        let explained = match &observation.answer {
            Answer::Committed {
                transaction,
                revision,
            } => self.explains_commit(transaction, *revision, observation),
            Answer::Refused {
                transaction,
                conflict,
            } => self.states[moments]
                .iter()
                .any(|state| first_failing(state, transaction).as_ref() == Some(conflict)),
            Answer::Got { key, record } => self.states[moments]
                .iter()
                .any(|state| state.get(key) == record.as_ref()),
            Answer::Listed { revision, records } => {
                let state = self.states.get(revision.number() as usize);
                state.is_some_and(|state| state.values().eq(records))
            }
        };
        if explained {
            Ok(())
        } else {
            Err(format!("no moment explains {observation:?}"))
        }
    }

    fn explains_commit(
        &self,
        transaction: &Transaction,
        revision: Revision,
        observation: &Observation,
    ) -> bool {
        let number = revision.number();
        let state = &self.states[number as usize];
        let changed_nothing = (observation.floor..=observation.ceiling).contains(&number)
            && changes_nothing(state, transaction);
        let made = number > observation.floor && number <= observation.ceiling && {
            let before = &self.states[number as usize - 1];
            makes(before, transaction, number).is_some()
                && apply(before, transaction, number).1 == self.changes[number as usize]
        };
        changed_nothing || made
    }

    fn check_watch(&self, watched: &Watched) -> Result<(), String> {
        let (after, through) = (
            watched.after.number() as usize,
            watched.through.number() as usize,
        );
        if let Some(snapshot) = &watched.snapshot {
            let records = self.states[after]
                .values()
                .filter(|record| record.key.starts_with(&watched.prefix));
            if !records.eq(snapshot) {
                return Err(format!(
                    "the snapshot at {after} under {:?} is wrong",
                    watched.prefix
                ));
            }
        }
        let expected: Vec<_> = self.changes[after + 1..=through]
            .iter()
            .filter_map(|change| under(&watched.prefix, change))
            .collect();
        let same = expected
            .iter()
            .zip(&watched.changes)
            .take_while(|(expected, seen)| expected == seen)
            .count();
        if same < expected.len().max(watched.changes.len()) {
            let (expected, seen) = (expected.get(same), watched.changes.get(same));
            return Err(format!(
                "the watch under {:?} expected {expected:?}, saw {seen:?}",
                watched.prefix
            ));
        }
        Ok(())
    }
}

fn under(prefix: &str, change: &Change) -> Option<Change> {
    let events: Vec<_> = change
        .events
        .iter()
        .filter(|event| event.key().starts_with(prefix))
        .cloned()
        .collect();
    (!events.is_empty()).then_some(Change {
        revision: change.revision,
        events,
    })
}

fn first_failing(state: &State, transaction: &Transaction) -> Option<Conflict> {
    let (index, condition) = transaction
        .conditions
        .iter()
        .enumerate()
        .find(|(_, condition)| !condition.holds(state.get(condition.key())))?;
    Some(Conflict {
        index,
        condition: condition.clone(),
    })
}

/// The state after, if the transaction is allowed and changes something.
fn makes(before: &State, transaction: &Transaction, number: u64) -> Option<State> {
    let (state, change) = apply(before, transaction, number);
    (first_failing(before, transaction).is_none() && !change.events.is_empty()).then_some(state)
}

fn changes_nothing(state: &State, transaction: &Transaction) -> bool {
    first_failing(state, transaction).is_none() && apply(state, transaction, 0).1.events.is_empty()
}

fn apply(before: &State, transaction: &Transaction, number: u64) -> (State, Change) {
    let revision = Revision::from_number(number);
    let (mut state, mut events) = (before.clone(), Vec::new());
    for operation in &transaction.operations {
        match operation {
            Operation::Put { key, value, lease } => {
                let old = before.get(key);
                let record = Record {
                    key: key.as_str().into(),
                    value: value.clone(),
                    created: old.map_or(revision, |old| old.created),
                    modified: revision,
                    version: old.map_or(1, |old| old.version + 1),
                    lease: *lease,
                };
                events.push(Event::Put(record.clone()));
                state.insert(key.clone(), record);
            }
            Operation::Delete { key } => {
                if state.remove(key).is_some() {
                    events.push(Event::Deleted {
                        key: key.as_str().into(),
                        revision,
                    });
                }
            }
        }
    }
    (state, Change { revision, events })
}
