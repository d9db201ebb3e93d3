//! Acts on instances: one worker each, so that what is done to an instance is done in order.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use compute::runtime::{Adopted, Environment, Error, InstanceSpec};
use model::compute::{Exit, ExitHow, Purpose};
use model::control::Reason;
use model::ids::InstanceId;
use model::signals::{Level, LogLine, Stream};
use plan::agent::{Input, Run};
use signals::logs::Reader;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::agent::Agent;
use crate::core::{Core, Running};
use crate::layout::{self, Layout};
use crate::pause::Pause;
use crate::prepare::{Doors, Failure, Secrets, gather, make_spec, place};
use crate::record::{Foreign, Record};
use crate::{clock, engine};

/// Lines in which last words are looked for.
const LAST_LINES: usize = 20;
/// Lines of them that are told: what went wrong is often followed by where.
const LAST_WORDS_LINES: usize = 3;
/// For the disk to give them.
const LAST_WORDS_PATIENCE: Duration = Duration::from_secs(1);
/// Logs that are read for them at a time: each holds a thread for as long as the disk takes.
pub const READINGS_MAX: usize = 16;
/// Characters of them that are told.
const LAST_WORDS_MAX: usize = 300;
/// Between two lines that are told as one.
const LINE_BREAK: &str = " | ";

const REMOVE_TRIES: u32 = 5;
/// Between two looks whether what is to end has.
const END_LOOK: Duration = Duration::from_millis(20);
/// Between two SIGKILLs to what is still there.
const KILL_AGAIN: Duration = Duration::from_secs(1);
const KILL_AGAIN_MOST: Duration = Duration::from_secs(30);

/// What a worker is to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Prepare(Run),
    Start(Run),
    Terminate,
    Kill,
    Remove,
}

/// The worker of one instance. It ends when the instance is removed and nothing more is asked.
pub async fn work(agent: Arc<Agent>, id: InstanceId, mut orders: mpsc::Receiver<Order>) {
    let mut next = None;
    loop {
        let order = match next.take() {
            Some(order) => order,
            None => match orders.recv().await {
                Some(order) => order,
                None => return,
            },
        };
        match order {
            // Given again while it was being done.
            Order::Prepare(run) if !still_prepares(&agent, &id, run) => {}
            Order::Start(run) if !still_starts(&agent, &id, run) => {}
            Order::Prepare(run) => next = prepare(&agent, &id, run, &mut orders).await,
            Order::Start(run) => start(&agent, &id, run).await,
            Order::Terminate => terminate(&agent, &id).await,
            Order::Kill => kill(&agent, &id).await,
            Order::Remove => {
                remove(&agent, &id).await;
                if agent.with(|core| retire(core, &id, &orders)) {
                    return;
                }
            }
        }
    }
}

/// Under the lock, so that no order comes in between.
fn retire(core: &mut Core, id: &InstanceId, orders: &mpsc::Receiver<Order>) -> bool {
    if !orders.is_empty() {
        return false;
    }
    core.workers.remove(id);
    core.release_ports(id);
    core.specs.remove(id);
    core.running.remove(id);
    core.asking.retain(|(asked, _), _| asked != id);
    core.notices.remove(id);
    let services = core.services();
    core.secrets.retain(|service, _| services.contains(service));
    true
}

/// Fetching may take long, and what is lacking longer, so a newer order breaks it off; what follows is short and is not broken off.
async fn prepare(
    agent: &Arc<Agent>,
    id: &InstanceId,
    run: Run,
    orders: &mut mpsc::Receiver<Order>,
) -> Option<Order> {
    let desired = agent.with(|core| {
        core.state
            .instance(id)
            .map(|instance| instance.desired().clone())
    })?;
    let mut pause = Pause::of_connection();
    let mut was_corrupt = false;
    loop {
        let gathered = tokio::select! {
            gathered = gather(agent, &desired) => gathered,
            order = next_order(orders, run) => return order,
        };
        let placed = match gathered {
            Ok(secrets) => place(agent, &desired, secrets).await,
            Err(failure) => Err(failure),
        };
        let instance = id.clone();
        match placed {
            Ok(()) => {
                agent.tell(Input::Prepared { instance, run });
                return None;
            }
            // The node's copy was discarded: fetch it again, once.
            Err(Failure::CorruptArtifact(error)) if !was_corrupt => agent.with(|core| {
                was_corrupt = true;
                let reason = Reason::new("corrupt-artifact", error);
                agent.say(core, Some(instance), Level::Warning, reason);
            }),
            Err(Failure::Lacks(reason)) => {
                agent.tell(Input::Lacks {
                    instance,
                    run,
                    reason,
                });
                tokio::select! {
                    () = pause.wait() => {}
                    order = next_order(orders, run) => return order,
                }
                if !still_prepares(agent, id, run) {
                    return None;
                }
            }
            Err(Failure::CorruptArtifact(error) | Failure::Other(error)) => {
                agent.tell(Input::NotStarted {
                    instance,
                    run,
                    error,
                });
                return None;
            }
        }
    }
}

/// Whether this run is still what the instance is prepared for.
fn still_prepares(agent: &Agent, id: &InstanceId, run: Run) -> bool {
    agent.with(|core| {
        let known = core.state.instance(id);
        known.is_some_and(|known| known.prepares(run))
    })
}

fn still_starts(agent: &Agent, id: &InstanceId, run: Run) -> bool {
    agent.with(|core| {
        let known = core.state.instance(id);
        known.is_some_and(|known| known.starts(run))
    })
}

/// The next order that is another one than to prepare this run.
async fn next_order(orders: &mut mpsc::Receiver<Order>, run: Run) -> Option<Order> {
    loop {
        let order = orders.recv().await;
        if order != Some(Order::Prepare(run)) {
            return order;
        }
    }
}

pub fn address(port: u16) -> String {
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, port).to_string()
}

async fn start(agent: &Arc<Agent>, id: &InstanceId, run: Run) {
    let instance = id.clone();
    let known = agent.with(|core| {
        let mut spec = InstanceSpec::clone(core.specs.get(id)?);
        spec.lease_sent_at = clock::moment(core.state.lease().sent_at().unwrap_or_default());
        core.running.insert(id.clone(), Running::new(run, None));
        Some((spec, *core.ports.get(id)?))
    });
    let Some((spec, port)) = known else {
        let error = "it was not prepared".to_owned();
        return agent.tell(Input::NotStarted {
            instance,
            run,
            error,
        });
    };
    match agent.runtime.start(&spec).await {
        Ok(started) => {
            let pid = started.pid;
            agent.with(|core| {
                // It may have ended already, and its end been told.
                if let Some(running) = core.running.get_mut(id) {
                    running.pid = Some(pid);
                }
            });
            let (address, at) = (address(port), started.at);
            agent.tell(Input::Started {
                instance,
                run,
                pid,
                address,
                at,
            });
        }
        Err(error) => {
            agent.with(|core| core.running.remove(id));
            let running = matches!(error, Error::Running(_));
            agent.tell(not_started(instance, run, error));
            if running {
                // A process that should not be there: the next try finds the place empty.
                let _ = agent.runtime.kill(id, &agent.layout.instance(id)).await;
            }
        }
    }
}

fn not_started(instance: InstanceId, run: Run, error: Error) -> Input {
    match error {
        // It waits for the servers, and has not failed.
        Error::LeaseOver => Input::Exited {
            instance,
            run,
            exit: Exit {
                how: ExitHow::LeaseLost,
                at: jiff::Timestamp::now(),
            },
            last_words: None,
        },
        error => Input::NotStarted {
            instance,
            run,
            error: error.to_string(),
        },
    }
}

async fn terminate(agent: &Arc<Agent>, id: &InstanceId) {
    let grace = agent.with(|core| core.grace(id));
    leave_road(agent, id, grace).await;
    let asked = agent.runtime.stop(id, grace).await;
    ended_unheard(agent, id, asked).await;
    end_stray(agent, id, grace).await;
}

/// What is left as it was goes from the road first, as any other, and has what it is in the middle of.
async fn leave_road(agent: &Arc<Agent>, id: &InstanceId, grace: Duration) {
    let has_callers = agent.with(|core| {
        core.leaves(id);
        let left = core.left_running().find(|left| left.instance == *id);
        left.is_some_and(Foreign::has_callers)
    });
    agent.signals.road.send_replace(());
    let until = Instant::now() + grace;
    let is_inside = |core: &mut Core| core.state.is_living_stray(id) && !core.is_drained(id);
    while has_callers && agent.with(is_inside) && Instant::now() < until {
        tokio::time::sleep(END_LOOK).await;
    }
}

/// Of a stray nobody else sees to its end: it is killed after its grace, as often as it takes.
async fn end_stray(agent: &Arc<Agent>, id: &InstanceId, grace: Duration) {
    let kill_at = Instant::now() + grace;
    let mut pause = Pause::new(KILL_AGAIN, KILL_AGAIN_MOST);
    while agent.with(|core| core.state.is_living_stray(id)) {
        if Instant::now() < kill_at {
            tokio::time::sleep(END_LOOK).await;
            continue;
        }
        kill(agent, id).await;
        let ended = async {
            while agent.with(|core| core.state.is_living_stray(id)) {
                tokio::time::sleep(END_LOOK).await;
            }
        };
        tokio::select! {
            () = ended => return,
            () = pause.wait() => {}
        }
    }
}

async fn kill(agent: &Arc<Agent>, id: &InstanceId) {
    let asked = agent.runtime.kill(id, &agent.layout.instance(id)).await;
    if let Err(Error::StillThere { processes }) = asked {
        return tell_unkillable(agent, id, processes);
    }
    ended_unheard(agent, id, asked).await;
}

fn tell_unkillable(agent: &Arc<Agent>, id: &InstanceId, processes: Vec<String>) {
    let Some(run) = agent.with(|core| Some(core.running.get(id)?.run)) else {
        return;
    };
    agent.tell(Input::Unkillable {
        instance: id.clone(),
        run,
        processes,
    });
}

/// The shim is not there to be asked: what it left says how its workload ended.
async fn ended_unheard(agent: &Arc<Agent>, id: &InstanceId, asked: Result<(), Error>) {
    let error = match asked {
        Ok(()) => return,
        // It is killed once its grace is over.
        Err(error @ Error::Mute(_)) => {
            return tracing::warn!(instance = %id, %error, "it can't be asked to end");
        }
        Err(error) => error,
    };
    let run = agent.with(|core| Some(core.running.get(id)?.run));
    // Without one its end was told meanwhile.
    let Some(run) = run else { return };
    tracing::warn!(instance = %id, %error, "can't be stopped; looking for what is left of it");
    let found = agent.runtime.adopt(id, &agent.layout.instance(id)).await;
    let exit = match found {
        Ok(Adopted::Running { .. }) => return,
        Ok(Adopted::Ended { exit }) => exit,
        Ok(Adopted::NotStarted) => Exit {
            how: ExitHow::Unknown,
            at: jiff::Timestamp::now(),
        },
        Err(Error::StillThere { processes }) => return tell_unkillable(agent, id, processes),
        // Asked again, until it is known.
        Err(error) => {
            tracing::warn!(instance = %id, %error, "what is left of it can't be looked at");
            return;
        }
    };
    agent.with(|core| core.running.remove(id));
    tell_end(agent, id.clone(), run, exit).await;
}

pub async fn tell_end(agent: &Arc<Agent>, instance: InstanceId, run: Run, exit: Exit) {
    let last_words = last_words(agent, &instance).await;
    agent.tell(Input::Exited {
        instance,
        run,
        exit,
        last_words,
    });
}

/// The last lines that an instance wrote to stderr since it was started: most often why it ended.
/// A disk that does not give them in time keeps them for itself: that it ended is told all the same.
async fn last_words(agent: &Agent, id: &InstanceId) -> Option<String> {
    let folder = compute::instance::log_directory(&agent.layout.instance(id));
    let readings = agent.readings.clone();
    let reading = async move {
        let turn = readings.acquire_owned().await.ok()?;
        let reading = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let batch = Reader::tail(&folder, LAST_LINES).ok()?.read_batch().ok()?;
            words_of(&batch.lines)
        });
        reading.await.ok().flatten()
    };
    let read = tokio::time::timeout(LAST_WORDS_PATIENCE, reading).await;
    read.ok().flatten()
}

/// Lines without a letter or digit only decorate. Where there is no room for all, the last has it first.
fn words_of(lines: &[LogLine]) -> Option<String> {
    let started = |line: &&LogLine| {
        line.stream == Stream::Shim && line.text.starts_with(compute::instance::STARTED)
    };
    let says = |line: &&LogLine| {
        line.stream == Stream::Stderr && line.text.contains(char::is_alphanumeric)
    };
    let of_this_run = lines.iter().rev().take_while(|line| !started(line));
    let mut room = LAST_WORDS_MAX;
    let mut told: Vec<String> = Vec::new();
    for line in of_this_run.filter(says).take(LAST_WORDS_LINES) {
        let text: String = line.text.trim().chars().take(room).collect();
        if text.is_empty() {
            break;
        }
        room = room.saturating_sub(text.chars().count() + LINE_BREAK.len());
        told.push(text);
    }
    told.reverse();
    (!told.is_empty()).then(|| told.join(LINE_BREAK))
}

/// What a person runs speaks to them, and leaves nothing behind that would push out what others said.
fn keep_output(layout: &Layout, id: &InstanceId) {
    let record = layout::read::<Record>(&layout.record(id)).ok().flatten();
    if record.is_some_and(|record| record.desired.purpose == Purpose::Run) {
        return;
    }
    let log = compute::instance::log_directory(&layout.instance(id));
    if let Err(error) = layout.keep_log(id, &log) {
        tracing::warn!(instance = %id, %error, "its output is not kept");
    }
}

async fn remove(agent: &Arc<Agent>, id: &InstanceId) {
    let directory = agent.layout.instance(id);
    // What keeps others from its volumes is that it lives, and not that its directory can't be removed.
    if agent.with(|core| core.state.is_living_stray(id)) {
        terminate(agent, id).await;
        // It is wanted again, and ends in its time, which its next orders say.
        if agent.with(|core| core.state.instance(id).is_some()) {
            agent.with(|core| core.foreign.remove(id));
            return;
        }
    }
    layout::aside(|| keep_output(&agent.layout, id));
    let mut pause = Pause::of_connection();
    for _ in 0..REMOVE_TRIES {
        match agent.runtime.remove(id, &directory).await {
            Ok(()) => {
                let instance = id.clone();
                agent.tell(Input::Gone { instance });
                break;
            }
            Err(error) => tracing::warn!(instance = %id, %error, "can't be removed yet"),
        }
        pause.wait().await;
    }
    // Unless it was wanted again meanwhile.
    let gone = agent.with(|core| {
        core.foreign.remove(id);
        core.state.instance(id).is_none()
    });
    if gone {
        agent.keeper.remove(agent.layout.record(id));
        layout::aside(|| engine::forget(agent, id));
        agent.with(|core| core.release_ports(id));
        agent.firewall.wants();
        agent.signals.certify.notify_one();
    }
}

/// What is needed to run something beside an instance: its environment is that of its process, also after the agent was restarted.
pub fn exec_spec(agent: &Agent, id: &InstanceId) -> Option<InstanceSpec> {
    let (known, desired, pid, port) = agent.with(|core| {
        let instance = core.state.instance(id)?;
        let known = core.specs.get(id).map(|spec| InstanceSpec::clone(spec));
        Some((
            known,
            instance.desired().clone(),
            instance.pid()?,
            core.ports.get(id).copied()?,
        ))
    })?;
    if let Some(spec) = known {
        return Some(spec);
    }
    let mut spec = make_spec(agent, &desired, port, &Doors::new(), Secrets::new()).ok()?;
    if let Some(environment) = environment_of(pid) {
        spec.environment = environment;
    }
    Some(spec)
}

/// That of a process, as it was started with.
fn environment_of(pid: u32) -> Option<Environment> {
    // It lies in the memory of the process, which may have to come from a disk.
    let text = layout::aside(|| std::fs::read(format!("/proc/{pid}/environ"))).ok()?;
    Some(parse_environment(&text))
}

fn parse_environment(text: &[u8]) -> Environment {
    let entries = text.split(|byte| *byte == 0).filter_map(|entry| {
        let entry = String::from_utf8_lossy(entry);
        let (name, value) = entry.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    });
    Environment(entries.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(said: &[(Stream, &str)]) -> Vec<LogLine> {
        let at = jiff::Timestamp::UNIX_EPOCH;
        let line = |(stream, text): &(Stream, &str)| LogLine::new(at, *stream, *text);
        said.iter().map(line).collect()
    }

    #[test]
    fn last_words_are_the_last_lines_that_say_something() {
        use Stream::{Shim, Stderr, Stdout};
        type Lines<'a> = &'a [(Stream, &'a str)];
        let table: [(Lines<'_>, Option<&str>); 5] = [
            (&[(Stdout, "hello"), (Stderr, " ^^ "), (Stderr, "")], None),
            (
                &[
                    (Stderr, "ERROR:  no table"),
                    (Stderr, "LINE 1: SELECT 1"),
                    (Stdout, "on with it"),
                    (Stderr, "               ^"),
                    (Shim, "exited with code 1"),
                ],
                Some("ERROR:  no table | LINE 1: SELECT 1"),
            ),
            (
                &[
                    (Stderr, "one"),
                    (Stderr, "two"),
                    (Stderr, "three"),
                    (Stderr, "four"),
                ],
                Some("two | three | four"),
            ),
            (
                &[(Stderr, "of the run before"), (Shim, "started as pid 7")],
                None,
            ),
            (
                &[
                    (Stderr, "of the run before"),
                    (Shim, "started as pid 7"),
                    (Stderr, "of this one"),
                ],
                Some("of this one"),
            ),
        ];
        for (said, told) in table {
            assert_eq!(words_of(&lines(said)).as_deref(), told, "{said:?}");
        }
    }

    #[test]
    fn the_last_of_them_has_its_room_first() {
        let long = "ä".repeat(LAST_WORDS_MAX);
        let told = |said: &[(Stream, &str)]| words_of(&lines(said)).unwrap();
        let ended = told(&[(Stream::Stderr, &long), (Stream::Stderr, "the end")]);
        assert!(ended.ends_with("ä | the end"), "{ended}");
        assert_eq!(ended.chars().count(), LAST_WORDS_MAX);
        let alone = told(&[(Stream::Stderr, "before"), (Stream::Stderr, &long)]);
        assert_eq!(alone, long, "the one before has no room");
    }
}
