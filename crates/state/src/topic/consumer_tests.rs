//! Tables of what a consumer gets next.

use proptest::prelude::*;

use super::pauses::{AWAY_MAX_MS, RETRY_FIRST_MS, RETRY_MAX_MS};
use super::*;

const LIMITS: Limits = Limits {
    in_flight: 8,
    attempts: 3,
};

/// A consumer that has looked at messages with these keys, from position 1 on.
fn with(keys: &[&str], limits: Limits) -> Consumer {
    let mut consumer = Consumer::new(0, limits, 0);
    for (position, key) in (1..).zip(keys) {
        let key = (!key.is_empty()).then(|| Key::from(*key));
        consumer.offer(position, key);
    }
    consumer
}

fn take_all(consumer: &mut Consumer, now_ms: u64) -> Vec<(Position, Token)> {
    std::iter::from_fn(|| consumer.take(now_ms))
        .map(|delivery| (delivery.position, delivery.token))
        .collect()
}

fn positions(taken: &[(Position, Token)]) -> Vec<Position> {
    taken.iter().map(|(position, _)| *position).collect()
}

/// As the disk does.
fn record(consumer: &mut Consumer) -> Changes {
    let changes = consumer.changes().unwrap_or_default();
    consumer.recorded(&changes);
    changes
}

#[test]
fn keys_go_one_after_the_other_and_everything_else_at_once() {
    for (keys, first) in [
        (&["a", "a", "b", ""][..], &[1, 3, 4][..]),
        (&["", "", ""], &[1, 2, 3]),
        (&["a", "a", "a"], &[1]),
        (&["a", "b", "a", "b"], &[1, 2]),
    ] {
        let mut consumer = with(keys, LIMITS);
        let taken = take_all(&mut consumer, 0);
        assert_eq!(positions(&taken), first, "{keys:?}");
    }
}

#[test]
fn the_next_of_a_key_goes_after_the_receipt() {
    let mut consumer = with(&["a", "a", "a"], LIMITS);
    for expected in 1..=3 {
        let taken = take_all(&mut consumer, 0);
        assert_eq!(positions(&taken), [expected]);
        assert!(consumer.done(taken[0].1));
        assert!(!consumer.done(taken[0].1), "a receipt counts once");
    }
    assert_eq!(consumer.backlog(3), 0);
    assert_eq!(record(&mut consumer).floor(), 3);
}

#[test]
fn no_more_are_on_their_way_than_allowed() {
    let limits = Limits {
        in_flight: 2,
        ..LIMITS
    };
    let mut consumer = with(&["", "", "", ""], limits);
    let taken = take_all(&mut consumer, 0);
    assert_eq!(positions(&taken), [1, 2]);
    consumer.done(taken[1].1);
    assert_eq!(positions(&take_all(&mut consumer, 0)), [3]);
}

#[test]
fn a_failed_attempt_is_written_down_before_the_next() {
    let mut consumer = with(&["a", "a"], LIMITS);
    let (_, token) = take_all(&mut consumer, 0)[0];
    assert!(consumer.failed(token, "no", None, 1000, 0.5));
    consumer.tick(100_000);
    assert_eq!(take_all(&mut consumer, 100_000), []);
    let changes = record(&mut consumer);
    let expected = Failure {
        position: 1,
        attempts: 1,
        retry_at_ms: 1015,
        error: "no".to_owned(),
    };
    assert_eq!(changes.failed, [expected]);
    assert_eq!(changes.floor(), 0, "it is not done with it");
    assert_eq!(
        (consumer.next_timer(), consumer.retrying()),
        (Some(1015), 1)
    );
    consumer.tick(1014);
    assert_eq!(take_all(&mut consumer, 1014), [], "not before its time");
    consumer.tick(1015);
    let again = consumer.take(1015).unwrap();
    assert_eq!((again.position, again.attempt), (1, 2));
    consumer.done(again.token);
    assert_eq!(record(&mut consumer).recovered, [1]);
    assert_eq!(consumer.retrying(), 0);
}

#[test]
fn waits_grow_with_jitter_and_have_bounds() {
    for (failures, random, expected) in [
        (1, 1.0, RETRY_FIRST_MS),
        (1, 0.0, RETRY_FIRST_MS / 2),
        (2, 1.0, 4 * RETRY_FIRST_MS),
        (4, 0.5, 48 * RETRY_FIRST_MS),
        (10, 1.0, RETRY_MAX_MS),
        (10, 0.0, RETRY_MAX_MS / 2),
        (u32::MAX, 1.0, RETRY_MAX_MS),
    ] {
        assert_eq!(retry_pause(failures, random), expected);
    }
    for (times, random, expected) in [
        (1, 1.0, 100),
        (1, 0.0, 0),
        (2, 1.0, 200),
        (u32::MAX, 1.0, AWAY_MAX_MS),
    ] {
        assert_eq!(away_pause(times, random), expected);
    }
    for (asked, expected) in [
        (None, RETRY_FIRST_MS),
        (Some(5_000), 5_000),
        (Some(u64::MAX), 300_000),
    ] {
        let mut consumer = with(&["a"], LIMITS);
        let (_, token) = take_all(&mut consumer, 0)[0];
        consumer.failed(token, "busy", asked, 0, 1.0);
        assert_eq!(record(&mut consumer).failed[0].retry_at_ms, expected);
    }
}

#[test]
fn after_its_attempts_a_message_is_dead_and_the_next_of_its_key_goes() {
    let mut consumer = with(&["a", "a"], LIMITS);
    for attempt in 1..=3 {
        consumer.tick(attempt * 1000);
        let taken = take_all(&mut consumer, attempt * 1000);
        assert_eq!(positions(&taken), [1]);
        consumer.failed(taken[0].1, "poison", None, attempt * 1000, 0.5);
        let changes = record(&mut consumer);
        assert_eq!(changes.dead.len(), usize::from(attempt == 3));
        assert_eq!(changes.open.contains(&1), attempt < 3);
    }
    assert_eq!(positions(&take_all(&mut consumer, 9000)), [2]);
    assert_eq!((consumer.retrying(), consumer.backlog(2)), (0, 1));
}

#[test]
fn a_redriven_message_goes_ahead_of_those_that_have_not_begun() {
    let limits = Limits {
        attempts: 1,
        ..LIMITS
    };
    let mut consumer = with(&["a", "a", "a"], limits);
    let (_, token) = take_all(&mut consumer, 0)[0];
    consumer.failed(token, "poison", None, 0, 0.0);
    assert_eq!(record(&mut consumer).dead.len(), 1);
    let (second, token) = take_all(&mut consumer, 0)[0];
    assert_eq!(second, 2);
    assert!(consumer.redrive(1, Some("a".into())));
    assert!(!consumer.redrive(1, Some("a".into())), "it is back already");
    assert!(consumer.is_urgent());
    assert_eq!(take_all(&mut consumer, 0), [], "the second has begun");
    consumer.done(token);
    let taken = consumer.take(0).unwrap();
    assert_eq!((taken.position, taken.attempt), (1, 1));
    let changes = record(&mut consumer);
    assert_eq!((changes.redriven, changes.open), (vec![1], vec![1, 3]));
    assert!(!consumer.is_urgent());
}

#[test]
fn what_comes_back_from_the_dead_letter_has_a_bound() {
    let mut consumer = Consumer::new(1_000_000, LIMITS, 0);
    let redriven = (1..=1_000_000).take_while(|position| consumer.redrive(*position, None));
    assert_eq!(redriven.count(), REDRIVEN_MAX);
    let first = consumer.take(0).unwrap();
    consumer.done(first.token);
    assert!(consumer.redrive(999_999, None), "there is room again");
}

#[test]
fn a_lease_that_ran_out_is_a_failed_attempt_and_its_token_is_refused() {
    let mut consumer = with(&[""], LIMITS);
    let first = consumer.take(0).unwrap();
    assert!(consumer.extend(first.token, 100));
    assert_eq!(consumer.next_timer(), Some(100));
    assert!(consumer.extend(first.token, 250));
    consumer.tick(249);
    assert!(consumer.holds(first.token));
    consumer.tick(250);
    assert!(!consumer.holds(first.token) && !consumer.extend(first.token, 999));
    record(&mut consumer);
    consumer.tick(250);
    let second = consumer.take(250).unwrap();
    assert!(consumer.extend(second.token, 350));
    assert_eq!((second.position, second.attempt), (1, 2));
    assert!(!consumer.done(first.token), "late");
    assert!(consumer.done(second.token));
    consumer.tick(1000);
    assert_eq!(consumer.next_timer(), None, "no timer is left behind");
}

#[test]
fn who_is_away_burns_no_attempts_and_is_asked_by_one_message() {
    let mut consumer = with(&["", "", ""], LIMITS);
    let taken = take_all(&mut consumer, 0);
    for (_, token) in &taken {
        consumer.absent(*token, 0, 1.0);
    }
    assert_eq!(take_all(&mut consumer, 109), [], "a pause");
    assert_eq!(consumer.next_timer(), Some(110));
    for (now_ms, pause_ms) in [
        (110, 210),
        (320, 410),
        (730, 810),
        (1540, 1610),
        (3150, 2010),
    ] {
        let probe = take_all(&mut consumer, now_ms);
        assert_eq!(positions(&probe), [1], "one finds out");
        consumer.absent(probe[0].1, now_ms, 1.0);
        assert_eq!(consumer.next_timer(), Some(now_ms + pause_ms));
    }
    assert!(
        consumer
            .changes()
            .is_some_and(|changes| changes.failed.is_empty())
    );
    let probe = consumer.take(60_000).unwrap();
    assert_eq!(probe.attempt, 1);
    consumer.done(probe.token);
    assert_eq!(positions(&take_all(&mut consumer, 60_000)), [2, 3]);
}

#[test]
fn who_is_away_and_may_have_nothing_is_not_waited_for() {
    let mut consumer = with(&[""], LIMITS);
    let (_, token) = take_all(&mut consumer, 0)[0];
    consumer.absent(token, 0, 1.0);
    assert_eq!(consumer.next_timer(), Some(110));
    let nothing = Limits {
        in_flight: 0,
        ..LIMITS
    };
    consumer.set_limits(nothing);
    assert_eq!(consumer.next_timer(), None);
    consumer.set_limits(LIMITS);
    assert_eq!(consumer.next_timer(), Some(110));
}

#[test]
fn it_looks_ahead_within_bounds() {
    let limits = Limits {
        in_flight: 1024,
        ..LIMITS
    };
    let mut free = Consumer::new(0, limits, 0);
    let mut stuck = Consumer::new(0, limits, 0);
    while free.wants() {
        free.offer(free.next_position(), None);
    }
    while stuck.wants() {
        stuck.offer(stuck.next_position(), Some("a".into()));
    }
    assert_eq!(
        (free.open_count(), stuck.open_count()),
        (1024, OPEN_MAX as u64)
    );
}

#[test]
fn a_restart_goes_on_where_it_was() {
    let mut consumer = with(&["a", "a", "", "b"], LIMITS);
    let taken = take_all(&mut consumer, 0);
    assert_eq!(positions(&taken), [1, 3, 4]);
    consumer.failed(taken[0].1, "no", None, 0, 1.0);
    consumer.done(taken[1].1);
    let changes = record(&mut consumer);
    assert_eq!((changes.read, &changes.open), (4, &vec![1, 2, 4]));
    assert_eq!(changes.floor(), 0);

    let mut again = Consumer::new(changes.read, LIMITS, 1 << 40);
    for position in &changes.open {
        let key = ["a", "a", "", "b"][*position as usize - 1];
        let key = (!key.is_empty()).then(|| Key::from(key));
        let failure = changes.failed.iter().find(|one| one.position == *position);
        again.restore(*position, key, failure);
    }
    assert_eq!(
        positions(&take_all(&mut again, 0)),
        [4],
        "1 waits for its retry, 2 for 1"
    );
    again.tick(100);
    let retried = again.take(100).unwrap();
    assert_eq!((retried.position, retried.attempt), (1, 2));
    assert!(!again.done(taken[2].1), "the lease is of another life");
}

#[test]
fn what_was_not_written_is_written_the_next_time() {
    let mut consumer = with(&["", ""], LIMITS);
    let taken = take_all(&mut consumer, 0);
    consumer.failed(taken[0].1, "no", None, 0, 0.0);
    let lost = consumer.changes().unwrap();
    consumer.done(taken[1].1);
    let changes = consumer.changes().unwrap();
    assert_eq!(changes.failed, lost.failed);
    assert_eq!(changes.open, [1]);
    consumer.recorded(&lost);
    assert!(consumer.changes().is_some(), "the receipt came after");
    record(&mut consumer);
    assert_eq!(consumer.changes(), None);
}

#[test]
fn an_attempt_is_written_down_before_it_is_made() {
    let mut consumer = with(&["", ""], LIMITS);
    let first = consumer.take(0).unwrap();
    let before = consumer.changes().unwrap();
    let second = consumer.take(0).unwrap();
    assert!(!consumer.may_begin(first.token));
    consumer.recorded(&before);
    assert_eq!(before.begun, [1]);
    assert!(consumer.may_begin(first.token) && !consumer.may_begin(second.token));
    assert_eq!(record(&mut consumer).begun, [1, 2]);
    assert!(consumer.may_begin(second.token));
    consumer.absent(second.token, 0, 0.0);
    assert!(!consumer.may_begin(second.token));
    assert_eq!(record(&mut consumer).begun, [1], "nobody had it");
    consumer.done(first.token);
    assert_eq!(record(&mut consumer).begun, [] as [Position; 0]);
}

#[test]
fn what_used_up_its_attempts_with_the_topic_is_dead_without_another() {
    let mut consumer = Consumer::new(2, LIMITS, 0);
    let failure = Failure {
        position: 1,
        attempts: 3,
        retry_at_ms: 0,
        error: "the topic ended".to_owned(),
    };
    consumer.restore(1, Some("a".into()), Some(&failure));
    consumer.restore(2, Some("a".into()), None);
    consumer.tick(0);
    assert_eq!(take_all(&mut consumer, 0), []);
    let changes = record(&mut consumer);
    let dead: Vec<_> = changes.dead.iter().map(|one| one.position).collect();
    assert_eq!(dead, [1]);
    assert_eq!(positions(&take_all(&mut consumer, 0)), [2]);
    assert_eq!(consumer.retrying(), 0);
}

#[derive(Debug, Clone)]
enum Act {
    Take,
    Done(usize),
    Fail(usize),
    Absent(usize),
    Record,
    Restart,
    Later(u64),
    Redrive(usize),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => Just(Act::Take),
        3 => (0..8_usize).prop_map(Act::Done),
        2 => (0..8_usize).prop_map(Act::Fail),
        1 => (0..8_usize).prop_map(Act::Absent),
        2 => Just(Act::Record),
        1 => Just(Act::Restart),
        2 => (1..500_u64).prop_map(Act::Later),
        1 => (0..4_usize).prop_map(Act::Redrive),
    ];
    prop::collection::vec(act, 1..200)
}

/// A consumer beside what a disk holds of it.
struct World {
    consumer: Consumer,
    keys: Vec<Option<Key>>,
    stored: Changes,
    failures: BTreeMap<Position, Failure>,
    dead: BTreeSet<Position>,
    held: Vec<(Position, Token)>,
    /// Of these, what may have been delivered.
    begun: BTreeSet<Token>,
    /// Since it was published, or came back from the dead letter.
    deliveries: BTreeMap<Position, u32>,
    now_ms: u64,
    lives: u64,
    receipts: BTreeSet<Position>,
}

impl World {
    fn record(&mut self) {
        let Some(changes) = self.consumer.changes() else {
            return;
        };
        for position in &changes.redriven {
            self.dead.remove(position);
        }
        for failure in &changes.failed {
            self.failures.insert(failure.position, failure.clone());
        }
        for position in &changes.recovered {
            self.failures.remove(position);
        }
        for failure in &changes.dead {
            self.failures.remove(&failure.position);
            self.dead.insert(failure.position);
        }
        self.consumer.recorded(&changes);
        self.stored = changes;
        self.deliver();
    }

    /// At once, whatever may be.
    fn deliver(&mut self) {
        for (position, token) in &self.held {
            if self.consumer.may_begin(*token) && self.begun.insert(*token) {
                let deliveries = self.deliveries.entry(*position).or_default();
                *deliveries += 1;
                assert!(*deliveries <= LIMITS.attempts, "{position} comes too often");
            }
        }
    }

    fn restart(&mut self) {
        self.lives += 1;
        for position in std::mem::take(&mut self.stored.begun) {
            let failure = self.failures.entry(position).or_insert_with(|| Failure {
                position,
                attempts: 0,
                retry_at_ms: 0,
                error: String::new(),
            });
            failure.attempts += 1;
        }
        self.consumer = Consumer::new(self.stored.read, LIMITS, self.lives << 40);
        for position in &self.stored.open {
            let key = self.keys[*position as usize - 1].clone();
            self.consumer
                .restore(*position, key, self.failures.get(position));
        }
        self.held.clear();
        self.offer();
    }

    fn offer(&mut self) {
        while (self.consumer.next_position() as usize) <= self.keys.len() {
            let next = self.consumer.next_position();
            let key = self.keys[next as usize - 1].clone();
            self.consumer.offer(next, key);
        }
    }

    fn take(&mut self) {
        let Some(delivery) = self.consumer.take(self.now_ms) else {
            return;
        };
        let key = &self.keys[delivery.position as usize - 1];
        let together = |(other, _): &(Position, Token)| {
            key.is_some() && self.keys[*other as usize - 1] == *key
        };
        assert!(!self.held.iter().any(together), "two of a key at a time");
        self.held.push((delivery.position, delivery.token));
    }

    fn act(&mut self, act: &Act) {
        let held = |index: &usize| self.held.get(*index % self.held.len().max(1)).copied();
        let held = |index: &usize| held(index).filter(|(_, token)| self.begun.contains(token));
        match act {
            Act::Take => self.take(),
            Act::Done(index) => {
                if let Some((position, token)) = held(index) {
                    assert!(self.consumer.done(token));
                    self.receipts.insert(position);
                    self.held.retain(|one| one.1 != token);
                }
            }
            Act::Fail(index) => {
                if let Some((_, token)) = held(index) {
                    assert!(self.consumer.failed(token, "no", None, self.now_ms, 0.5));
                    self.held.retain(|one| one.1 != token);
                }
            }
            Act::Absent(index) => {
                if let Some((position, token)) = held(index) {
                    self.consumer.absent(token, self.now_ms, 0.5);
                    *self.deliveries.entry(position).or_default() -= 1;
                    self.held.retain(|one| one.1 != token);
                }
            }
            Act::Record => self.record(),
            Act::Restart => self.restart(),
            Act::Later(time_ms) => {
                self.now_ms += time_ms;
                self.consumer.tick(self.now_ms);
            }
            Act::Redrive(index) => {
                if let Some(position) = self.dead.iter().nth(*index).copied() {
                    let key = self.keys[position as usize - 1].clone();
                    if self.consumer.redrive(position, key) {
                        self.deliveries.remove(&position);
                    }
                }
            }
        }
    }

    /// Everything goes well from now on.
    fn finish(&mut self) {
        for _ in 0..1000 {
            self.now_ms += 60_000;
            self.consumer.tick(self.now_ms);
            self.take();
            self.record();
            while let Some((position, token)) = self.held.pop() {
                self.consumer.done(token);
                self.receipts.insert(position);
            }
            self.record();
        }
    }
}

proptest! {
    #[test]
    fn every_message_ends_with_a_receipt_or_dead_whatever_happens(
        keys in prop::collection::vec(prop::option::of(0..3_u8), 1..20),
        acts in acts(),
    ) {
        let keys: Vec<Option<Key>> = keys
            .into_iter()
            .map(|key| key.map(|key| Key::from(key.to_string())))
            .collect();
        let mut world = World {
            consumer: Consumer::new(0, LIMITS, 0),
            stored: Changes::default(),
            failures: BTreeMap::new(),
            dead: BTreeSet::new(),
            held: Vec::new(),
            begun: BTreeSet::new(),
            deliveries: BTreeMap::new(),
            now_ms: 0,
            lives: 0,
            receipts: BTreeSet::new(),
            keys,
        };
        world.offer();
        for act in &acts {
            world.act(act);
        }
        world.finish();
        for position in 1..=world.keys.len() as u64 {
            prop_assert!(
                world.receipts.contains(&position) || world.dead.contains(&position),
                "{position} is lost"
            );
        }
        prop_assert_eq!(world.consumer.backlog(world.keys.len() as u64), 0);
        prop_assert_eq!(world.consumer.retrying(), 0);
        prop_assert_eq!(world.consumer.in_flight(), 0);
        prop_assert_eq!(world.consumer.next_timer(), None);
        prop_assert!(world.failures.is_empty());
    }
}
