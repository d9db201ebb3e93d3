//! How long until the next try, and what is a crash loop.
//!
//! Exponential from 100 ms, doubling, at most 60 s, with equal jitter: half of the wait is certain, half is drawn. (The shape is that of the
//! AWS Architecture Blog, "Exponential Backoff And Jitter", 2015; first and last wait are chosen so that one bad start costs a user nothing
//! they notice, and a hopeless one costs the machine nothing it notices.)

use std::time::Duration;

use model::compute::{Exit, ExitHow};
use model::control::Reason;
use serde::{Deserialize, Serialize};

pub const FIRST: Duration = Duration::from_millis(100);
pub const MOST: Duration = Duration::from_secs(60);
/// An instance that ran this long has recovered: its next exit is the first again.
pub const HEALTHY: Duration = Duration::from_secs(60);
/// This many exits in a row, each before [`HEALTHY`], are a crash loop.
pub const CRASH_LOOP_FROM: u32 = 5;
/// The code of its reason.
pub const CRASH_LOOP: &str = "crash-loop";

/// Exits in a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    pub streak: u32,
}

impl Backoff {
    /// It exited after `uptime`: how long to wait before it is started again. `jitter` is drawn evenly from 0 to 1.
    pub fn next(&mut self, uptime: Duration, jitter: f64) -> Duration {
        if uptime >= HEALTHY {
            self.streak = 0;
        }
        self.streak = self.streak.saturating_add(1);
        wait(self.streak, jitter)
    }

    pub fn is_crash_loop(self) -> bool {
        self.streak >= CRASH_LOOP_FROM
    }

    /// What a user is told: a crash loop is named as such.
    pub fn reason(self, exit: &Exit, wait: Duration) -> Reason {
        let ended = ended(&exit.how);
        let next = seconds(wait);
        let (code, message) = match self.is_crash_loop() {
            true => (
                CRASH_LOOP,
                format!(
                    "crash loop: {ended}, {} times in a row, next start in {next}",
                    self.streak
                ),
            ),
            false => ("restarting", format!("{ended}, next start in {next}")),
        };
        Reason::new(code, message)
    }
}

/// The wait before the try after `failures` in a row, the first of which is 1.
pub fn wait(failures: u32, jitter: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let whole = MOST.min(FIRST * 2_u32.pow(doublings));
    whole / 2 + whole.div_f64(2.0).mul_f64(jitter.clamp(0.0, 1.0))
}

/// How a process ended, in words: `exit code 1`, `signal 9`, `out of memory (limit 128Mi)`.
pub fn ended(how: &ExitHow) -> String {
    match how {
        ExitHow::Code { code } => format!("exit code {code}"),
        ExitHow::Signal { signal } => format!("signal {signal}"),
        ExitHow::Background { processes } => format!(
            "its program went to the background (exit code 0 with {} still running): {}",
            processes.join(", "),
            to_foreground(processes)
        ),
        ExitHow::OutOfMemory { limit } => format!("out of memory (limit {limit})"),
        ExitHow::NotStarted { error } => format!("not started: {error}"),
        ExitHow::LeaseLost => "stopped when its lease ran out".to_owned(),
        ExitHow::Unknown => "ended, how is not known".to_owned(),
    }
}

/// How programs that go to the background by themselves are kept from it, by the names of their processes.
const FOREGROUND: [(&str, &str); 14] = [
    ("nginx", "nginx -g 'daemon off;'"),
    ("apache2", "apache2ctl -D FOREGROUND"),
    ("httpd", "httpd -D FOREGROUND"),
    ("redis-server", "redis-server --daemonize no"),
    ("valkey-server", "valkey-server --daemonize no"),
    ("postgres", "postgres itself in place of pg_ctl"),
    ("sshd", "sshd -D"),
    ("haproxy", "haproxy -db"),
    ("mongod", "mongod without --fork"),
    ("memcached", "memcached without -d"),
    ("gunicorn", "gunicorn without --daemon"),
    ("caddy", "caddy run in place of caddy start"),
    ("php-fpm", "php-fpm --nodaemonize"),
    ("uwsgi", "uwsgi without --daemonize"),
];

/// What keeps a program in the foreground.
fn to_foreground(processes: &[String]) -> String {
    // `php-fpm8.2`, `redis-server *:6379` and `nginx: master` are the same programs.
    let known = FOREGROUND
        .iter()
        .find(|(name, _)| processes.iter().any(|process| process.starts_with(name)));
    match known {
        Some((_, command)) => format!("run it in the foreground: {command}"),
        None => {
            "run it in the foreground (a shell script ends with `exec PROGRAM`, not `PROGRAM &`)"
                .to_owned()
        }
    }
}

fn seconds(wait: Duration) -> String {
    match wait.as_millis() {
        ms @ 0..1000 => format!("{ms} ms"),
        ms => format!("{} s", (ms + 500) / 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_minute() {
        let table = [
            (1, 0.0, 50),
            (1, 1.0, 100),
            (2, 1.0, 200),
            (5, 1.0, 1_600),
            (11, 1.0, 60_000),
            (u32::MAX, 1.0, 60_000),
            (u32::MAX, 0.0, 30_000),
        ];
        for (failures, jitter, ms) in table {
            assert_eq!(
                wait(failures, jitter),
                Duration::from_millis(ms),
                "{failures} {jitter}"
            );
        }
    }

    #[test]
    fn what_went_to_the_background_is_named_with_its_mend() {
        let nginx = "run it in the foreground: nginx -g 'daemon off;'";
        for (processes, expect) in [
            (&["nginx"][..], nginx),
            (&["sh", "nginx: worker"], nginx),
            (&["php-fpm8.2"], "php-fpm --nodaemonize"),
            (&["my-daemon"], "`exec PROGRAM`"),
        ] {
            let processes = processes.iter().map(|name| (*name).to_owned()).collect();
            let told = ended(&ExitHow::Background { processes });
            assert!(
                told.starts_with("its program went to the background"),
                "{told}"
            );
            assert!(told.contains(expect), "{told}");
        }
    }

    #[test]
    fn a_minute_of_health_is_a_fresh_start() {
        let mut backoff = Backoff { streak: 7 };
        assert_eq!(backoff.next(HEALTHY, 1.0), FIRST);
        assert!(!backoff.is_crash_loop());
    }

    #[test]
    fn the_fifth_exit_in_a_row_is_a_crash_loop() {
        let exit = Exit {
            how: ExitHow::Code { code: 1 },
            at: jiff::Timestamp::UNIX_EPOCH,
        };
        let mut backoff = Backoff::default();
        for _ in 0..4 {
            let wait = backoff.next(Duration::ZERO, 1.0);
            assert_eq!(backoff.reason(&exit, wait).code, "restarting");
        }
        let wait = backoff.next(Duration::ZERO, 1.0);
        let reason = backoff.reason(&exit, wait);
        assert_eq!(reason.code, "crash-loop");
        assert_eq!(
            reason.message,
            "crash loop: exit code 1, 5 times in a row, next start in 2 s"
        );
    }
}
