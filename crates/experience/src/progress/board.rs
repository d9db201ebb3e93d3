//! Progress to look at: live on a terminal, a line per change elsewhere.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use api::wire::NodeState;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{World, unready};

/// Shows progress: live on a terminal, a line per change elsewhere.
pub(super) enum Board {
    Live {
        bars: MultiProgress,
        lines: BTreeMap<String, ProgressBar>,
    },
    Plain {
        told: BTreeMap<String, String>,
    },
}

impl Board {
    pub(super) fn new() -> Self {
        match std::io::stderr().is_terminal() {
            true => Self::Live {
                bars: MultiProgress::new(),
                lines: BTreeMap::new(),
            },
            false => Self::Plain {
                told: BTreeMap::new(),
            },
        }
    }

    pub(super) fn show(&mut self, world: &World) {
        let now = board_lines(world);
        match self {
            Self::Live { bars, lines } => show_live(bars, lines, &now),
            Self::Plain { told } => {
                for (name, (line, _)) in &now {
                    if told.get(name) != Some(line) {
                        // A closed stderr is no reason to end.
                        let line = crate::output::for_stderr(line);
                        let _ = writeln!(std::io::stderr(), "{name}: {line}");
                    }
                }
                *told = now
                    .into_iter()
                    .map(|(name, (line, _))| (name, line))
                    .collect();
            }
        }
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        if let Self::Live { bars, .. } = self {
            let _ = bars.clear();
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
