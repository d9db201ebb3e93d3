//! What happened to an instance.

use std::time::Duration;

use jiff::Timestamp;
use model::compute::{Ask, BEFORE_DEPLOY_FAILED, Completion, Exit, ExitHow, environment_name};
use model::control::Reason;
use model::signals::Level;
use model::traffic::Gate;

use super::{Instance, KILL_AGAIN, NEWS_INTERVAL, ORDER_AGAIN, Phase, Process, QUIET_START, Why};
use crate::Now;
use crate::agent::probing::NOT_READY_INTERVAL;
use crate::agent::{Draw, Input, Output, Question};
use crate::backoff;

/// The signal that nothing outlives.
const SIGKILL: i32 = 9;
/// The code of a reason that says how the health probe fails.
const NOT_READY: &str = "not-ready";
/// The code of a reason that says why it could not be asked.
const NOT_ASKED: &str = "not-asked";

fn probe_fails(error: &str) -> String {
    format!("its health probe fails: {error}")
}

impl Instance {
    pub(in crate::agent) fn take(
        &mut self,
        input: Input,
        stopping: bool,
        now: Now,
        draw: &mut Draw,
        outputs: &mut Vec<Output>,
    ) {
        match input {
            Input::Prepared { run, .. } if self.prepares(run) => self.start(now, outputs),
            Input::Lacks { run, reason, .. } if self.prepares(run) => self.lacks(reason, outputs),
            Input::NotStarted { run, error, .. } if run == self.run => {
                if matches!(self.phase, Phase::Preparing { .. } | Phase::Starting { .. }) {
                    let how = ExitHow::NotStarted { error };
                    self.ended(Exit { how, at: now.at }, None, stopping, now, draw, outputs);
                }
            }
            Input::Started {
                run,
                pid,
                address,
                at,
                ..
            } if run == self.run => self.started(pid, address, at, now, outputs),
            Input::Suspended { run, suspended, .. } if run == self.run => {
                self.suspended(suspended, now, outputs);
            }
            Input::Unkillable { run, processes, .. } if run == self.run && self.has_process() => {
                self.unkillable(&processes, now, outputs);
            }
            Input::Exited {
                run,
                exit,
                last_words,
                ..
            } if run == self.run && self.has_process() => {
                self.ended(exit, last_words, stopping, now, draw, outputs);
            }
            Input::Probed {
                run,
                question,
                asked,
                answer,
                ..
            } if run == self.run => self.probed(question, asked, answer, now, outputs),
            Input::NotAsked {
                run, question, why, ..
            } if run == self.run => self.not_asked(question, &why, now, outputs),
            Input::Drained { .. } if matches!(self.phase, Phase::Draining { .. }) => {
                self.terminate(Why::Leave, now, outputs);
            }
            Input::Drained { .. } if self.gate == Gate::Leaving => {
                if let Some(process) = &mut self.process {
                    process.drained = true;
                }
            }
            _ => {}
        }
    }

    fn start(&mut self, now: Now, outputs: &mut Vec<Output>) {
        let waited = self.has_waited();
        self.phase = Phase::Starting {
            again_at: now.instant.after(ORDER_AGAIN),
        };
        self.reason = self.reason.take().filter(|_| !waited);
        outputs.push(Output::Start {
            instance: self.desired.instance.clone(),
            run: self.run,
        });
    }

    /// Said once, however often it is tried.
    fn lacks(&mut self, reason: Reason, outputs: &mut Vec<Output>) {
        if self.reason.as_ref() != Some(&reason) {
            self.reason = Some(reason.clone());
            self.tell(Level::Warning, reason, outputs);
        }
    }

    fn started(
        &mut self,
        pid: u32,
        address: String,
        at: Timestamp,
        now: Now,
        outputs: &mut Vec<Output>,
    ) {
        if !matches!(self.phase, Phase::Starting { .. }) {
            return;
        }
        self.phase = Phase::Running;
        self.process = Some(Process::new(pid, Some(at), now.instant));
        self.address = Some(address);
        self.reason = None;
        self.history.starts = self.history.starts.saturating_add(1);
        self.history.ran = true;
        self.history.interrupted = false;
        outputs.push(Output::Remember {
            instance: self.desired.instance.clone(),
        });
        self.tell(
            Level::Info,
            Reason::new("started", format!("started, pid {pid}")),
            outputs,
        );
    }

    /// It is named until it is gone, and holds what it held: its place, its volumes, its lease.
    fn unkillable(&mut self, processes: &[String], now: Now, outputs: &mut Vec<Output>) {
        let message = format!("still there after SIGKILL: {}", processes.join(", "));
        let remedy = "it goes when the kernel lets go of it: a disk that answers again, a frozen cgroup that is thawed, or a restart of the machine";
        let reason = Reason::new("unkillable", message).with_detail(vec![remedy.to_owned()]);
        if matches!(self.phase, Phase::Running | Phase::Draining { .. }) {
            // Its main process has ended.
            self.phase = Phase::Stopping {
                why: Why::Restart,
                kill_at: now.instant.after(KILL_AGAIN),
            };
        }
        if self.reason.as_ref() != Some(&reason) {
            self.reason = Some(reason.clone());
            self.tell(Level::Error, reason, outputs);
        }
    }

    fn suspended(&mut self, suspended: bool, now: Now, outputs: &mut Vec<Output>) {
        let Some(process) = self.process.as_mut() else {
            return;
        };
        if process.suspended == suspended {
            return;
        }
        process.suspended = suspended;
        process.health.hurry(now.instant);
        let reason = match suspended {
            true => Reason::new(
                "suspended",
                "stopped by a signal: takes no requests until it is continued",
            ),
            false => {
                // What it answers now decides, not what it answered before.
                process.ready &= matches!(self.desired.spec.health.ask, Ask::None);
                process.not_ready_since = now.instant;
                Reason::new("continued", "continued after a signal had stopped it")
            }
        };
        self.reason = suspended.then(|| reason.clone());
        self.tell(Level::Warning, reason, outputs);
    }

    pub(super) fn probed(
        &mut self,
        question: Question,
        asked: Option<String>,
        answer: Result<(), String>,
        now: Now,
        outputs: &mut Vec<Output>,
    ) {
        match question {
            Question::Health => self.health_answered(asked, answer, now, outputs),
            Question::Alive => self.alive_answered(answer, now, outputs),
        }
    }

    /// What is known of it stands, good or bad. Where nothing is, it is told why.
    fn not_asked(&mut self, question: Question, why: &str, now: Now, outputs: &mut Vec<Output>) {
        let Some(process) = self.process.as_mut() else {
            return;
        };
        let spec = &self.desired.spec;
        match (question, &spec.alive) {
            (Question::Health, _) => {
                let pause = process.health_pause(&spec.health, now.instant);
                process.health.not_asked(pause, now.instant);
                self.tell_not_asked(why, now, outputs);
            }
            (Question::Alive, Some(probe)) => {
                let pause = probe.times.every.duration();
                process.alive.not_asked(pause, now.instant);
            }
            (Question::Alive, None) => {}
        }
    }

    /// An event once in a run, however often it is tried.
    fn tell_not_asked(&mut self, why: &str, now: Now, outputs: &mut Vec<Output>) {
        let Some(process) = self.process.as_mut() else {
            return;
        };
        let told_at = process.not_asked_told_at;
        let is_news = told_at.is_none_or(|at| now.instant.since(at) >= NEWS_INTERVAL);
        if process.ready || self.reason.is_some() || !is_news {
            return;
        }
        process.not_asked_told_at = Some(now.instant);
        let message = format!("the node can't ask how it does: {why}");
        let reason = Reason::new(NOT_ASKED, message);
        self.reason = Some(reason.clone());
        if told_at.is_none() {
            self.tell(Level::Warning, reason, outputs);
        }
    }

    fn health_answered(
        &mut self,
        asked: Option<String>,
        answer: Result<(), String>,
        now: Now,
        outputs: &mut Vec<Output>,
    ) {
        let probe = &self.desired.spec.health;
        let Some(process) = self.process.as_mut() else {
            return;
        };
        let was_ready = process.ready;
        let pause = process.health_pause(probe, now.instant);
        process.health.answered(answer.is_ok(), pause, now.instant);
        self.reason.take_if(|reason| reason.code == NOT_ASKED);
        match answer {
            Ok(()) if !was_ready => {
                let took = now.instant.since(process.since);
                let message = match process.is_ready() {
                    true => format!("ready {} ms after its start", took.as_millis()),
                    false => "answers its health probe again".to_owned(),
                };
                let pause = probe.times.every.duration();
                process.health.answered(true, pause, now.instant);
                process.alive.hurry(now.instant.after(pause));
                self.reason = None;
                self.remember_ready(outputs);
                self.tell(Level::Info, Reason::new("ready", message), outputs);
            }
            Ok(()) => {}
            Err(error) if was_ready && process.health.has_failed(probe) => {
                process.ready = false;
                process.not_ready_since = now.instant;
                process.health.hurry(now.instant.after(NOT_READY_INTERVAL));
                let reason = self.not_ready(&error, asked.as_deref(), now);
                self.tell(Level::Warning, reason, outputs);
            }
            Err(error) if !was_ready && self.is_news(&error, now) => {
                self.not_ready(&error, asked.as_deref(), now);
            }
            Err(_) => {}
        }
    }

    /// Whether its report should say that its probe fails like this: the newest answer counts, and one that changes from 50 ms to 50 ms is not
    /// reported each time.
    fn is_news(&self, error: &str, now: Now) -> bool {
        let Some(process) = &self.process else {
            return false;
        };
        let Some(reason) = &self.reason else {
            return now.instant.since(process.since) >= QUIET_START;
        };
        let told_at = process.failure_told_at;
        reason.code == NOT_READY
            && reason.message != probe_fails(error)
            && told_at.is_none_or(|at| now.instant.since(at) >= NEWS_INTERVAL)
    }

    /// Kept from the first time on.
    pub(super) fn remember_ready(&mut self, outputs: &mut Vec<Output>) {
        if !std::mem::replace(&mut self.history.was_ready, true) {
            outputs.push(Output::Remember {
                instance: self.desired.instance.clone(),
            });
        }
    }

    fn not_ready(&mut self, error: &str, asked: Option<&str>, now: Now) -> Reason {
        let was_ready = self.process.as_mut().is_some_and(|process| {
            process.failure_told_at = Some(now.instant);
            process.ever_ready
        });
        let remedy = match was_ready {
            true => Vec::new(),
            false => self.never_answered(asked),
        };
        let reason = Reason::new(NOT_READY, probe_fails(error)).with_detail(remedy);
        self.reason = Some(reason.clone());
        reason
    }

    /// What is asked of a program that has not answered since it started, at the address where it was asked.
    fn never_answered(&self, asked: Option<&str>) -> Vec<String> {
        let probe = &self.desired.spec.health;
        let own = self.address.as_deref().filter(|_| probe.port.is_none());
        let address = asked.or(own).unwrap_or("the address it is given");
        let port = match &probe.port {
            Some(port) => format!("$PORT_{}", environment_name(port)),
            None => "$PORT".to_owned(),
        };
        match &probe.ask {
            Ask::Connect => vec![
                format!("it should listen at {address}: the port is in {port}"),
                "`health: none` in the manifest is for a program that listens to nothing"
                    .to_owned(),
            ],
            Ask::Http { path, .. } => vec![format!(
                "GET {path} at {address} should be answered 200 to 399: the port is in {port}"
            )],
            Ask::Exec { .. } | Ask::Engine | Ask::None => Vec::new(),
        }
    }

    fn alive_answered(&mut self, answer: Result<(), String>, now: Now, outputs: &mut Vec<Output>) {
        let (Some(probe), Some(process)) = (&self.desired.spec.alive, self.process.as_mut()) else {
            return;
        };
        process
            .alive
            .answered(answer.is_ok(), probe.times.every.duration(), now.instant);
        let failed = process.alive.has_failed(probe) && !process.suspended;
        if let (Err(error), true, Phase::Running) = (answer, failed, &self.phase) {
            let reason = Reason::new(
                "not-alive",
                format!("restarted: its alive probe fails: {error}"),
            );
            self.reason = Some(reason.clone());
            self.tell(Level::Warning, reason, outputs);
            self.terminate(Why::Restart, now, outputs);
        }
    }

    /// Its process ended, or there was none to begin with.
    pub(super) fn ended(
        &mut self,
        exit: Exit,
        last_words: Option<String>,
        stopping: bool,
        now: Now,
        draw: &mut Draw,
        outputs: &mut Vec<Output>,
    ) {
        let process = self.process.take();
        let uptime = process.map_or(Duration::ZERO, |process| now.instant.since(process.since));
        self.history.last_exit = Some(exit.clone());
        let fenced = matches!(exit.how, ExitHow::LeaseLost)
            || matches!(
                self.phase,
                Phase::Stopping {
                    why: Why::Lease,
                    ..
                }
            );
        if self.leaves(stopping) {
            self.stopped(&exit, now, outputs);
        } else if fenced {
            self.phase = Phase::Fenced;
            self.reason = Some(Reason::new(
                "lease-lost",
                "stopped because the servers did not answer (`on_partition: stop`); starts again when they do",
            ));
        } else if self.has_finished() {
            self.phase = Phase::Finished;
            self.history.was_ready = true;
            self.reason = None;
            self.tell(Level::Info, Reason::new("finished", "finished"), outputs);
        } else if self.has_failed() {
            self.fail(last_words, outputs);
        } else {
            self.back_off(&exit, last_words, uptime, now, draw, outputs);
        }
        outputs.push(Output::Remember {
            instance: self.desired.instance.clone(),
        });
    }

    /// Its end was wanted.
    fn stopped(&mut self, exit: &Exit, now: Now, outputs: &mut Vec<Output>) {
        let killed = matches!(self.phase, Phase::Stopping { kill_at, .. } if now.instant >= kill_at)
            && matches!(exit.how, ExitHow::Signal { signal: SIGKILL });
        self.phase = Phase::Stopped;
        self.reason = None;
        // A start after this is no restart.
        self.history.starts = 0;
        self.history.interrupted = true;
        let (level, ended) = match killed {
            true => {
                let grace = self.desired.spec.grace;
                let ended = format!("did not end within {grace}, so it was killed");
                (Level::Warning, ended)
            }
            false => (Level::Info, backoff::ended(&exit.how)),
        };
        let reason = Reason::new("stopped", format!("stopped: {ended}"));
        self.tell(level, reason, outputs);
    }

    pub(super) fn has_finished(&self) -> bool {
        let exit = self.history.last_exit.as_ref().map(|exit| &exit.how);
        // What is to end may leave something behind that it does not wait for.
        matches!(exit, Some(ExitHow::Code { code: 0 } | ExitHow::Background { .. }))
            && matches!(self.desired.spec.completion, Completion::OnSuccess)
            // Told to end, it may have done half of its work and called that well.
            && !(self.runs_once() && self.history.interrupted)
    }

    /// It ran and ended badly, and is not run again: who decides about the rollout is told.
    pub(super) fn has_failed(&self) -> bool {
        let exit = self.history.last_exit.as_ref().map(|exit| &exit.how);
        let is_an_end = matches!(
            exit,
            Some(ExitHow::Code { .. } | ExitHow::Signal { .. } | ExitHow::OutOfMemory { .. })
        );
        self.runs_once() && is_an_end && !self.history.interrupted && !self.has_finished()
    }

    pub(super) fn fail(&mut self, last_words: Option<String>, outputs: &mut Vec<Output>) {
        let exit = self.history.last_exit.as_ref();
        let ended = exit.map_or_else(String::new, |exit| backoff::ended(&exit.how));
        let said = last_words.map(|line| format!("its last words: {line}"));
        let reason = Reason::new(BEFORE_DEPLOY_FAILED, format!("ended with {ended}"))
            .with_detail(said.into_iter().collect());
        self.phase = Phase::Failed;
        self.reason = Some(reason.clone());
        self.tell(Level::Error, reason, outputs);
    }

    fn back_off(
        &mut self,
        exit: &Exit,
        last_words: Option<String>,
        uptime: Duration,
        now: Now,
        draw: &mut Draw,
        outputs: &mut Vec<Output>,
    ) {
        let wait = self.history.backoff.next(uptime, draw.next());
        let mut reason = self.history.backoff.reason(exit, wait);
        if let (
            Phase::Stopping {
                why: Why::Restart, ..
            },
            Some(cause),
        ) = (&self.phase, &self.reason)
        {
            reason.detail.push(cause.message.clone());
        }
        let said = last_words.map(|line| format!("its last words: {line}"));
        reason.detail.extend(said);
        self.phase = Phase::BackingOff {
            until: now.instant.after(wait),
        };
        let level = match (&exit.how, self.history.backoff.is_crash_loop()) {
            (ExitHow::OutOfMemory { .. } | ExitHow::NotStarted { .. }, _) | (_, true) => {
                Level::Error
            }
            _ => Level::Warning,
        };
        self.reason = Some(reason.clone());
        self.tell(level, reason, outputs);
    }
}
