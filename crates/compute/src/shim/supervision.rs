//! When the shim terminates and kills: pure.
//!
//! ```text
//!            stop, or the lease is 2.5 s old           grace over, or the lease is 3.25 s old, or kill
//! Running ───────────────────────────────► Terminating ────────────────────────────────────► Killing
//!    └────────────────────────────────────────── kill ───────────────────────────────────────────▲
//! ```

use std::time::Duration;

use model::compute::ExitHow;
use model::timing::{KILL_AFTER, TERMINATE_AFTER};
use model::units::Bytes;

use crate::lease::Moment;

/// Between two SIGKILLs to what is still there.
const KILL_AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    Asked,
    Lease,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Running,
    Terminating { kill_at: Moment, cause: Cause },
    Killing { again_at: Moment, cause: Cause },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    Stop {
        grace: Duration,
    },
    Kill,
    Renewed {
        sent_at: Moment,
    },
    /// Time has passed.
    Tick,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Terminate,
    Kill,
}

#[derive(Debug)]
pub(crate) struct Supervision {
    stage: Stage,
    lease_sent_at: Option<Moment>,
}

impl Supervision {
    pub(crate) fn new(lease_sent_at: Option<Moment>) -> Self {
        Self {
            stage: Stage::Running,
            lease_sent_at,
        }
    }

    pub(crate) fn step(&mut self, input: Input, now: Moment) -> Option<Action> {
        match input {
            Input::Stop { grace } => self.stop(now.after(grace)),
            Input::Kill => self.kill(Cause::Asked, now),
            // A newer one may wait behind it, after a stall: what time has brought is for the tick that follows all of them.
            Input::Renewed { sent_at } => {
                self.renew(sent_at, now);
                None
            }
            Input::Tick => self.tick(now),
        }
    }

    fn stop(&mut self, kill_at: Moment) -> Option<Action> {
        match self.stage {
            Stage::Running => {
                self.stage = Stage::Terminating {
                    kill_at,
                    cause: Cause::Asked,
                };
                Some(Action::Terminate)
            }
            Stage::Terminating {
                kill_at: earlier,
                cause,
            } => {
                // A second stop may shorten the grace, never lengthen it.
                self.stage = Stage::Terminating {
                    kill_at: kill_at.min(earlier),
                    cause,
                };
                None
            }
            Stage::Killing { .. } => None,
        }
    }

    fn kill(&mut self, cause: Cause, now: Moment) -> Option<Action> {
        if matches!(self.stage, Stage::Killing { .. }) {
            return None;
        }
        let again_at = now.after(KILL_AGAIN);
        self.stage = Stage::Killing { again_at, cause };
        Some(Action::Kill)
    }

    /// A renewal can't have been sent in the future, and an older one takes nothing back. Once terminating it is too late:
    /// the workload is already on its way out.
    fn renew(&mut self, sent_at: Moment, now: Moment) {
        if let Some(lease) = &mut self.lease_sent_at {
            *lease = sent_at.min(now).max(*lease);
        }
    }

    fn tick(&mut self, now: Moment) -> Option<Action> {
        let lease_over = |wait| {
            self.lease_sent_at
                .is_some_and(|sent| now >= sent.after(wait))
        };
        match self.stage {
            Stage::Running if lease_over(KILL_AFTER) => self.kill(Cause::Lease, now),
            Stage::Running if lease_over(TERMINATE_AFTER) => {
                let sent = self.lease_sent_at.unwrap_or(now);
                self.stage = Stage::Terminating {
                    kill_at: sent.after(KILL_AFTER),
                    cause: Cause::Lease,
                };
                Some(Action::Terminate)
            }
            Stage::Terminating { cause, .. } if cause == Cause::Asked && lease_over(KILL_AFTER) => {
                self.kill(Cause::Lease, now)
            }
            Stage::Terminating { kill_at, cause } if now >= kill_at => self.kill(cause, now),
            // What the kernel held may have been let go, and have started others.
            Stage::Killing { again_at, cause } if now >= again_at => {
                self.stage = Stage::Killing {
                    again_at: now.after(KILL_AGAIN),
                    cause,
                };
                Some(Action::Kill)
            }
            _ => None,
        }
    }

    /// When to look again, if nothing else happens.
    pub(crate) fn next_deadline(&self) -> Option<Moment> {
        let lease = |wait| self.lease_sent_at.map(|sent| sent.after(wait));
        match self.stage {
            Stage::Running => lease(TERMINATE_AFTER),
            Stage::Terminating {
                kill_at,
                cause: Cause::Asked,
            } => Some(lease(KILL_AFTER).map_or(kill_at, |lease| lease.min(kill_at))),
            Stage::Terminating {
                kill_at,
                cause: Cause::Lease,
            } => Some(kill_at),
            Stage::Killing { again_at, .. } => Some(again_at),
        }
    }

    pub(crate) fn cause(&self) -> Option<Cause> {
        match self.stage {
            Stage::Running => None,
            Stage::Terminating { cause, .. } | Stage::Killing { cause, .. } => Some(cause),
        }
    }
}

/// How a process ended, as `wait` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Code(i32),
    Signal(i32),
}

/// What to record. The kernel kills for memory by SIGKILL: with its counter grown, and nobody of ours having asked for the
/// end, it was that.
pub(crate) fn exit_how(
    ended: Ended,
    cause: Option<Cause>,
    out_of_memory: bool,
    limit: Bytes,
) -> ExitHow {
    match (ended, cause) {
        (_, Some(Cause::Lease)) => ExitHow::LeaseLost,
        (Ended::Signal(9), None) if out_of_memory => ExitHow::OutOfMemory { limit },
        (Ended::Signal(signal), _) => ExitHow::Signal { signal },
        (Ended::Code(code), _) => ExitHow::Code { code },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(count: u64) -> Moment {
        Moment(count * 1_000_000)
    }

    fn stop(grace_ms: u64) -> Input {
        Input::Stop {
            grace: Duration::from_millis(grace_ms),
        }
    }

    #[test]
    fn stages_follow_each_other_like_a_table() {
        use Action::{Kill, Terminate};
        use Input::{Kill as AskKill, Renewed, Tick};
        type Steps = Vec<(u64, Input, Option<Action>)>;
        let renew = |sent| Renewed { sent_at: ms(sent) };
        let table: Vec<(&str, Option<Moment>, Steps)> = vec![
            (
                "nothing to enforce",
                None,
                vec![(99_000, Tick, None), (99_000, renew(99_000), None)],
            ),
            (
                "grace",
                None,
                vec![
                    (0, stop(100), Some(Terminate)),
                    (99, Tick, None),
                    (100, Tick, Some(Kill)),
                    (200, Tick, None),
                ],
            ),
            (
                "a second stop shortens only",
                None,
                vec![
                    (0, stop(100), Some(Terminate)),
                    (10, stop(20), None),
                    (11, stop(500), None),
                    (30, Tick, Some(Kill)),
                ],
            ),
            (
                "kill at once, once",
                None,
                vec![
                    (0, AskKill, Some(Kill)),
                    (0, AskKill, None),
                    (0, stop(1), None),
                ],
            ),
            (
                "lease",
                Some(ms(0)),
                vec![
                    (2499, Tick, None),
                    (2500, Tick, Some(Terminate)),
                    (3249, Tick, None),
                    (3250, Tick, Some(Kill)),
                ],
            ),
            (
                "renewed by when it was sent",
                Some(ms(0)),
                vec![
                    (2400, renew(1000), None),
                    (3499, Tick, None),
                    (3500, Tick, Some(Terminate)),
                ],
            ),
            (
                "an old renewal takes nothing back",
                Some(ms(1000)),
                vec![
                    (1100, renew(0), None),
                    (3499, Tick, None),
                    (3500, Tick, Some(Terminate)),
                ],
            ),
            (
                "a renewal from the future counts from now",
                Some(ms(0)),
                vec![(1000, renew(9000), None), (3500, Tick, Some(Terminate))],
            ),
            (
                "too late",
                Some(ms(0)),
                vec![
                    (2500, Tick, Some(Terminate)),
                    (2600, renew(2600), None),
                    (3250, Tick, Some(Kill)),
                ],
            ),
            (
                "a renewal that is itself too old",
                Some(ms(0)),
                vec![(2600, renew(50), None), (2600, Tick, Some(Terminate))],
            ),
            (
                "all that waited is heard before anything is done",
                Some(ms(0)),
                vec![
                    (6000, renew(1000), None),
                    (6000, renew(5900), None),
                    (6000, Tick, None),
                    (8400, Tick, Some(Terminate)),
                ],
            ),
            (
                "the lease ends a long grace",
                Some(ms(0)),
                vec![
                    (1000, stop(60_000), Some(Terminate)),
                    (3249, Tick, None),
                    (3250, Tick, Some(Kill)),
                ],
            ),
            (
                "renewals carry a long grace",
                Some(ms(0)),
                vec![
                    (1000, stop(5000), Some(Terminate)),
                    (2000, renew(2000), None),
                    (4000, renew(4000), None),
                    (5999, Tick, None),
                    (6000, Tick, Some(Kill)),
                ],
            ),
            (
                "after a freeze it is killed at once",
                Some(ms(0)),
                vec![(60_000, Tick, Some(Kill))],
            ),
            (
                "what is still there is killed again",
                None,
                vec![
                    (0, AskKill, Some(Kill)),
                    (999, AskKill, None),
                    (1000, Tick, Some(Kill)),
                    (1999, Tick, None),
                    (2000, Tick, Some(Kill)),
                ],
            ),
        ];
        for (name, lease, steps) in table {
            let mut supervision = Supervision::new(lease);
            for (at, input, expected) in steps {
                assert_eq!(
                    supervision.step(input, ms(at)),
                    expected,
                    "{name} at {at} ms"
                );
            }
        }
    }

    #[test]
    fn the_next_deadline_is_never_after_an_action() {
        let mut supervision = Supervision::new(Some(ms(0)));
        assert_eq!(supervision.next_deadline(), Some(ms(2500)));
        supervision.step(stop(60_000), ms(100));
        assert_eq!(supervision.next_deadline(), Some(ms(3250)));
        supervision.step(stop(400), ms(100));
        assert_eq!(supervision.next_deadline(), Some(ms(500)));
        supervision.step(Input::Kill, ms(200));
        assert_eq!(supervision.next_deadline(), Some(ms(1200)));
        assert_eq!(Supervision::new(None).next_deadline(), None);
    }

    #[test]
    fn exits_read_like_a_table() {
        let limit = Bytes(1);
        let table = [
            (Ended::Code(3), None, false, ExitHow::Code { code: 3 }),
            (Ended::Code(3), None, true, ExitHow::Code { code: 3 }),
            (Ended::Signal(9), None, true, ExitHow::OutOfMemory { limit }),
            (Ended::Signal(9), None, false, ExitHow::Signal { signal: 9 }),
            (
                Ended::Signal(11),
                None,
                true,
                ExitHow::Signal { signal: 11 },
            ),
            (
                Ended::Signal(9),
                Some(Cause::Asked),
                true,
                ExitHow::Signal { signal: 9 },
            ),
            (
                Ended::Code(0),
                Some(Cause::Lease),
                false,
                ExitHow::LeaseLost,
            ),
        ];
        for (ended, cause, oom, expected) in table {
            assert_eq!(
                exit_how(ended, cause, oom, limit),
                expected,
                "{ended:?} {cause:?} {oom}"
            );
        }
    }
}
