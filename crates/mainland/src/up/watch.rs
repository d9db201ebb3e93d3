//! Watching the processes of one machine: what ends is started again, but for what somebody wants dead.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::again::Again;
use super::chaos;
use super::layout::EDGE;
use super::supervisor::{SERVER, Supervisor};
use super::told::{
    told_crash_loop, told_death, told_killed, told_never_joined, told_removal, told_stopped,
};

/// How often it is looked whether processes go on, and whether somebody has started a lost node again.
const LIVENESS_INTERVAL: Duration = Duration::from_secs(1);
/// Looks after which a process that a signal stopped counts as that: a debugger, or ctrl-Z and `fg`, stop one for a moment.
const STOPPED_LOOKS: u32 = 3;
/// From the death of an agent until it is looked at what has not died with it: who kills all of a node begins with some of it.
const DEATH_SETTLES: Duration = Duration::from_millis(200);

/// Ends in a row, of which each is told; afterwards only that there are more.
const TOLD_DEATHS: u32 = 3;

/// What becomes of a process that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Somebody else has started another one.
    Lives,
    /// Its node is none any more.
    Removed,
    /// Somebody wants it dead.
    Killed,
    /// What it would begin with is not here.
    NeverJoined,
    Again,
}

impl Supervisor {
    /// Never returns.
    pub async fn watch(&mut self) {
        let mut again = Again::default();
        let mut look_at = Instant::now() + LIVENESS_INTERVAL;
        loop {
            let now = Instant::now();
            let until_look = look_at.saturating_duration_since(now);
            let patience = again
                .next(now)
                .map_or(until_look, |rests| rests.min(until_look));
            if let Some(name) = self.next_end(patience).await {
                self.processes.remove(&name);
                again.ended(&name, settles(&name), Instant::now());
            }
            let now = Instant::now();
            if now >= look_at {
                look_at = now + LIVENESS_INTERVAL;
                self.look_for_stopped();
                for name in self.missing() {
                    again.missing(&name, now);
                }
            }
            for (name, due) in again.rested(now) {
                self.rested(&name, due.deaths, &mut again);
            }
        }
    }

    /// `None`: none has ended for so long.
    async fn next_end(&self, patience: Duration) -> Option<String> {
        let mut ends = tokio::task::JoinSet::new();
        for (name, identity) in self.processes.clone() {
            ends.spawn(async move {
                identity.ended().await;
                name
            });
        }
        tokio::select! {
            Some(Ok(name)) = ends.join_next() => Some(name),
            () = tokio::time::sleep(patience) => None,
        }
    }

    /// Those that should be there and are not, whatever has come of their ends.
    fn missing(&mut self) -> Vec<String> {
        let mut names = self.layout.known_nodes();
        names.push(SERVER.to_owned());
        names.retain(|name| match name.as_str() {
            SERVER => !self.processes.contains_key(SERVER),
            _ => self.fate(name) == Fate::Again,
        });
        names
    }

    fn fate(&mut self, name: &str) -> Fate {
        if name == SERVER {
            return Fate::Again;
        }
        if self.finds_node(name) {
            return Fate::Lives;
        }
        let layout = &self.layout;
        match () {
            () if layout.is_removed(name) => Fate::Removed,
            () if layout.is_killed(name) => Fate::Killed,
            () if !layout.has_joined(name) => Fate::NeverJoined,
            () => Fate::Again,
        }
    }

    /// One that has rested. `deaths`: its ends in a row of which the last has not been told yet; 0 where there is none to be told.
    fn rested(&mut self, name: &str, deaths: u32, again: &mut Again) {
        let fate = self.fate(name);
        let told = match (deaths, fate) {
            (0, _) => None,
            (many, Fate::Again) if many > TOLD_DEATHS + 1 => None,
            (many, Fate::Again) if many > TOLD_DEATHS => {
                Some(told_crash_loop(name, &self.layout.log(name)))
            }
            _ => self.told(name, fate),
        };
        if let Some(told) = told {
            experience::notice(&told);
        }
        if fate != Fate::Again {
            return;
        }
        if let Err(error) = self.restart(name)
            && again.is_news(name, &error.root_cause().to_string())
        {
            experience::notice(&format!("{name} can't be started: {error:#}"));
        }
        // Whoever killed it at this moment has not seen it.
        if name != SERVER
            && self.layout.is_killed(name)
            && let Some(agent) = self.processes.get(name)
        {
            let _ = agent.signal(Signal::KILL);
        }
    }

    fn told(&self, name: &str, fate: Fate) -> Option<String> {
        let directory = self.layout.node(name);
        match fate {
            Fate::Lives => None,
            Fate::Removed => Some(told_removal(name, &directory)),
            Fate::Killed => Some(told_killed(name)),
            Fate::NeverJoined => Some(told_never_joined(name, &self.layout.log(name))),
            Fate::Again if name == SERVER || name == EDGE => {
                Some(format!("{name} ended; it starts again"))
            }
            Fate::Again => Some(told_death(name, chaos::instances_on(&directory))),
        }
    }

    /// A process that a signal has stopped is there and does nothing. The front door's is replaced, since nothing else stands in for it; of the
    /// others it is said, for their loss is a node's.
    fn look_for_stopped(&mut self) {
        for (name, process) in &self.processes {
            if !process.is_stopped() {
                if self.stopped.remove(name) >= Some(STOPPED_LOOKS) {
                    experience::notice(&format!("{name} goes on"));
                }
                continue;
            }
            let looks = self.stopped.entry(name.clone()).or_default();
            *looks = looks.saturating_add(1);
            if *looks == STOPPED_LOOKS {
                experience::notice(&told_stopped(name, process.pid));
                if name == EDGE {
                    let _ = process.signal(Signal::KILL);
                }
            }
        }
        let processes = &self.processes;
        self.stopped.retain(|name, _| processes.contains_key(name));
    }
}

/// Nothing stands in for the server, nor for the front door.
fn settles(name: &str) -> Duration {
    match name {
        SERVER | EDGE => Duration::ZERO,
        _ => DEATH_SETTLES,
    }
}
