//! Which endpoint is next.
//!
//! Power of two choices (Mitzenmacher 2001) over a cost: two endpoints are drawn and the cheaper one is taken. The same zone comes
//! first while load stays even: the best of the near ones gives way to the best of the far ones only when it is busier and at
//! least twice as costly. Endpoints that were tried or are avoided are passed over while others remain; when nothing but avoided
//! ones remains they are used all the same (panic mode), because a doubtful endpoint is better than none.

use rand::Rng;

/// A far endpoint is preferred when the near one costs this many times as much.
const ZONE_PREFERENCE: f64 = 2.0;

/// What the choice asks about endpoint `i`.
pub trait Candidates {
    fn cost(&self, index: usize) -> f64;
    fn in_flight(&self, index: usize) -> u32;
    /// Ejected or resting.
    fn avoided(&self, index: usize) -> bool;
    /// Tried already for this request.
    fn tried(&self, index: usize) -> bool;
}

/// `near` and `far` are disjoint lists of indices. `None` when every endpoint has been tried.
pub fn least_latency(
    candidates: &impl Candidates,
    near: &[usize],
    far: &[usize],
    random: &mut impl Rng,
) -> Option<usize> {
    let good = |index: usize| !candidates.tried(index) && !candidates.avoided(index);
    let close = best_of_two(candidates, near, good, random);
    let distant = best_of_two(candidates, far, good, random);
    match (close, distant) {
        (Some(close), Some(distant)) if overloaded(candidates, close, distant) => Some(distant),
        (Some(close), _) => Some(close),
        (None, Some(distant)) => Some(distant),
        (None, None) => {
            let untried = |index: usize| !candidates.tried(index);
            best_of_two(candidates, near, untried, random)
                .or_else(|| best_of_two(candidates, far, untried, random))
        }
    }
}

/// The `turn`th endpoint in a circle, tried and avoided ones passed over.
pub fn round_robin(candidates: &impl Candidates, count: usize, turn: usize) -> Option<usize> {
    let circle = || (0..count).map(move |step| (turn.wrapping_add(step)) % count);
    circle()
        .find(|&index| !candidates.tried(index) && !candidates.avoided(index))
        .or_else(|| circle().find(|&index| !candidates.tried(index)))
}

fn overloaded(candidates: &impl Candidates, near: usize, far: usize) -> bool {
    candidates.in_flight(near) > candidates.in_flight(far)
        && candidates.cost(near) > ZONE_PREFERENCE * candidates.cost(far)
}

/// Draws two different usable ones and takes the cheaper.
fn best_of_two(
    candidates: &impl Candidates,
    pool: &[usize],
    usable: impl Fn(usize) -> bool,
    random: &mut impl Rng,
) -> Option<usize> {
    let count = pool.len();
    if count == 0 {
        return None;
    }
    let start = random.random_range(0..count);
    let first_step = (0..count).find(|step| usable(pool[(start + step) % count]))?;
    let first = (start + first_step) % count;
    if count == 1 {
        return Some(pool[first]);
    }
    // Any of the others is equally likely to be where the search for the second begins.
    let offset = random.random_range(1..count);
    let second = (0..count - 1)
        .map(|step| (first + 1 + (offset - 1 + step) % (count - 1)) % count)
        .find(|&place| usable(pool[place]));
    match second {
        Some(second) if candidates.cost(pool[second]) < candidates.cost(pool[first]) => {
            Some(pool[second])
        }
        _ => Some(pool[first]),
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    #[derive(Default, Clone)]
    struct Table {
        cost: Vec<f64>,
        in_flight: Vec<u32>,
        avoided: Vec<usize>,
        tried: Vec<usize>,
    }

    impl Candidates for Table {
        fn cost(&self, index: usize) -> f64 {
            self.cost[index]
        }
        fn in_flight(&self, index: usize) -> u32 {
            self.in_flight.get(index).copied().unwrap_or(0)
        }
        fn avoided(&self, index: usize) -> bool {
            self.avoided.contains(&index)
        }
        fn tried(&self, index: usize) -> bool {
            self.tried.contains(&index)
        }
    }

    /// How often each endpoint is chosen in 1000 draws.
    fn shares(table: &Table, near: &[usize], far: &[usize]) -> Vec<u32> {
        let mut random = SmallRng::seed_from_u64(7);
        let mut shares = vec![0; table.cost.len()];
        for _ in 0..1000 {
            if let Some(index) = least_latency(table, near, far, &mut random) {
                shares[index] += 1;
            }
        }
        shares
    }

    #[test]
    fn equal_endpoints_share_evenly_and_the_worst_of_three_gets_nothing() {
        let equal = Table {
            cost: vec![1.0; 4],
            ..Table::default()
        };
        for share in shares(&equal, &[0, 1, 2, 3], &[]) {
            assert!((180..320).contains(&share), "{share}");
        }
        let one_slow = Table {
            cost: vec![1.0, 1.0, 9.0],
            ..Table::default()
        };
        assert_eq!(shares(&one_slow, &[0, 1, 2], &[])[2], 0);
    }

    #[test]
    fn the_same_zone_first_while_load_stays_even() {
        let even = Table {
            cost: vec![1.5, 1.0],
            in_flight: vec![1, 0],
            ..Table::default()
        };
        assert_eq!(shares(&even, &[0], &[1]), [1000, 0]);
        let uneven = Table {
            cost: vec![9.0, 1.0],
            in_flight: vec![8, 0],
            ..Table::default()
        };
        assert_eq!(shares(&uneven, &[0], &[1]), [0, 1000]);
        let slow_but_idle = Table {
            cost: vec![9.0, 1.0],
            ..Table::default()
        };
        assert_eq!(shares(&slow_but_idle, &[0], &[1]), [1000, 0]);
    }

    #[test]
    fn tried_ones_are_never_chosen_and_avoided_ones_last() {
        let base = Table {
            cost: vec![1.0; 3],
            ..Table::default()
        };
        let tried = Table {
            tried: vec![0, 2],
            ..base.clone()
        };
        assert_eq!(shares(&tried, &[0, 1], &[2]), [0, 1000, 0]);
        let avoided = Table {
            avoided: vec![0, 1],
            ..base.clone()
        };
        assert_eq!(shares(&avoided, &[0, 1], &[2]), [0, 0, 1000]);
        let panic = Table {
            avoided: vec![0, 1, 2],
            tried: vec![2],
            ..base.clone()
        };
        let shares_in_panic = shares(&panic, &[0, 1], &[2]);
        assert_eq!(shares_in_panic[2], 0);
        assert_eq!(shares_in_panic[0] + shares_in_panic[1], 1000);
        let all_tried = Table {
            tried: vec![0, 1, 2],
            ..base
        };
        assert_eq!(shares(&all_tried, &[0, 1], &[2]), [0, 0, 0]);
    }

    #[test]
    fn round_robin_goes_in_a_circle_past_the_avoided() {
        let table = Table {
            cost: vec![1.0; 3],
            avoided: vec![1],
            ..Table::default()
        };
        let turns: Vec<_> = (0..4).map(|turn| round_robin(&table, 3, turn)).collect();
        assert_eq!(turns, [Some(0), Some(2), Some(2), Some(0)]);
    }
}
