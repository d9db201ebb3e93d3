//! Progress to look at: live on a terminal, a line per change elsewhere.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use api::wire::NodeState;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{World, unready};

/// Shows progress: live on a terminal, a line per change elsewhere.
pub(super) enum Board {
    Live {
        bars: MultiProgress,
        lines: BTreeMap<String, ProgressBar>,
    },
    Plain(Plain),
}

/// What was told line by line, and what is to be.
#[derive(Default)]
pub(super) struct Plain {
    lines: BTreeMap<String, Told>,
}

struct Told {
    /// As it was told last; `None`: not yet, since nothing was to be waited for.
    line: Option<String>,
    at: Instant,
    /// As it is.
    now: String,
}

/// A name has no more than a line in this time, however often it comes and goes; the last of it is told.
const TOLD_EVERY: Duration = Duration::from_secs(2);

impl Plain {
    /// The lines that are due. What is as it should be when it is seen first is not told: nothing is waited for there.
    fn due(&mut self, seen: &BTreeMap<String, (String, bool)>, now: Instant) -> Vec<String> {
        self.lines.retain(|name, _| seen.contains_key(name));
        let mut due = Vec::new();
        for (name, (line, done)) in seen {
            let Some(told) = self.lines.get_mut(name) else {
                let first = (!done).then(|| line.clone());
                due.extend(first.as_ref().map(|line| format!("{name}: {line}")));
                let told = Told {
                    line: first,
                    at: now,
                    now: line.clone(),
                };
                self.lines.insert(name.clone(), told);
                continue;
            };
            let has_changed =
                told.now != *line || told.line.as_ref().is_some_and(|told| told != line);
            told.now.clone_from(line);
            let is_silent = told.line.is_none() || now.duration_since(told.at) >= TOLD_EVERY;
            if has_changed && is_silent {
                due.push(format!("{name}: {line}"));
                told.line = Some(line.clone());
                told.at = now;
            }
        }
        due
    }

    /// What was held back, at the end.
    fn rest(&self) -> Vec<String> {
        let held = self.lines.iter().filter(|(_, told)| {
            let line = told.line.as_ref();
            line.is_some_and(|line| *line != told.now)
        });
        held.map(|(name, told)| format!("{name}: {}", told.now))
            .collect()
    }
}

/// Beside the output proper. A closed stderr is no reason to end.
fn tell(lines: Vec<String>) {
    for line in lines {
        let _ = writeln!(std::io::stderr(), "{}", crate::output::for_stderr(&line));
    }
}

impl Board {
    pub(super) fn new() -> Self {
        match std::io::stderr().is_terminal() {
            true => Self::Live {
                bars: MultiProgress::new(),
                lines: BTreeMap::new(),
            },
            false => Self::Plain(Plain::default()),
        }
    }

    pub(super) fn show(&mut self, world: &World) {
        let now = board_lines(world);
        match self {
            Self::Live { bars, lines } => show_live(bars, lines, &now),
            Self::Plain(plain) => tell(plain.due(&now, Instant::now())),
        }
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        match self {
            Self::Live { bars, .. } => drop(bars.clear()),
            Self::Plain(plain) => tell(plain.rest()),
        }
    }
}

fn show_live(
    bars: &MultiProgress,
    lines: &mut BTreeMap<String, ProgressBar>,
    now: &BTreeMap<String, (String, bool)>,
) {
    lines.retain(|name, bar| {
        let stays = now.contains_key(name);
        if !stays {
            bar.finish_and_clear();
        }
        stays
    });
    for (name, (line, done)) in now {
        let bar = lines.entry(name.clone()).or_insert_with(|| {
            let bar = bars.add(ProgressBar::new_spinner());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        let template = if *done {
            "  ✓ {prefix:<20} {msg}"
        } else {
            "  {spinner} {prefix:<20} {msg}"
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix(name.clone());
        bar.set_message(crate::output::line(line).into_owned());
    }
}

/// A line for each node and service: what it is, whether it is done.
fn board_lines(world: &World) -> BTreeMap<String, (String, bool)> {
    let mut lines = BTreeMap::new();
    for node in &world.nodes {
        let state = crate::output::word(&node.state);
        lines.insert(
            format!("node {}", node.name),
            (state, node.state != NodeState::Unknown),
        );
    }
    for (status, instances) in &world.projects {
        for service in status.services.iter().filter(|service| !service.external) {
            let first = unready(instances, &service.name)
                .first()
                .map_or(String::new(), |line| format!(" ({})", line.trim()));
            let line = format!("{} of {} ready{first}", service.ready, service.wanted);
            lines.insert(
                service.name.to_string(),
                (line, service.ready == service.wanted),
            );
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_and_goes_is_told_now_and_then_and_what_is_well_not_at_all() {
        let mut plain = Plain::default();
        let begin = Instant::now();
        let mut look = |ms: u64, lines: &[(&str, &str, bool)]| {
            let seen = lines
                .iter()
                .map(|(name, line, done)| ((*name).to_owned(), ((*line).to_owned(), *done)));
            plain.due(&seen.collect(), begin + Duration::from_millis(ms))
        };
        let node = ("node a", "ready", true);
        let other = ("api", "1 of 1 ready", true);
        let first = look(0, &[node, other, ("web", "0 of 1 ready", false)]);
        assert_eq!(first, ["web: 0 of 1 ready"]);
        // A crash loop changes its line with each look.
        let mut told = Vec::new();
        for turn in 1..=100 {
            let line = format!("0 of 1 ready (restart {turn})");
            told.extend(look(turn * 50, &[node, other, ("web", &line, false)]));
        }
        assert_eq!(told.len(), 2, "in 5 s: {told:?}");
        // What was well, and is so no more, is told at once, and again when it is.
        let lost = look(
            5050,
            &[
                ("node a", "lost", true),
                other,
                ("web", "1 of 1 ready", true),
            ],
        );
        assert_eq!(lost, ["node a: lost"]);
        assert!(look(5100, &[node, other, ("web", "1 of 1 ready", true)]).is_empty());
        assert_eq!(plain.rest(), ["node a: ready", "web: 1 of 1 ready"]);
    }
}
