//! What a bench has to say: a table, what it was measured on, and what it had to hold.

use std::fmt::Write as _;

pub(super) struct Table {
    title: &'static str,
    /// What was done, in a sentence or two.
    setting: String,
    columns: &'static [&'static str],
    rows: Vec<Vec<String>>,
    /// A promise, and whether it was kept.
    promises: Vec<(String, bool)>,
}

impl Table {
    pub(super) fn new(
        title: &'static str,
        setting: impl Into<String>,
        columns: &'static [&'static str],
    ) -> Self {
        Self {
            title,
            setting: setting.into(),
            columns,
            rows: Vec::new(),
            promises: Vec::new(),
        }
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub(super) fn promise(&mut self, text: impl Into<String>, kept: bool) {
        self.promises.push((text.into(), kept));
    }

    pub(super) fn to_markdown(&self) -> String {
        let mut text = format!("# {}\n\n{}\n\n{}\n\n", self.title, self.setting, machine());
        let mut line = |cells: &[String]| {
            let _ = writeln!(text, "| {} |", cells.join(" | "));
        };
        line(
            &self
                .columns
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>(),
        );
        line(&vec!["---".to_owned(); self.columns.len()]);
        self.rows.iter().for_each(|row| line(row));
        if !self.promises.is_empty() {
            text.push('\n');
        }
        for (promise, kept) in &self.promises {
            let mark = if *kept { "held" } else { "**not held**" };
            let _ = writeln!(text, "- {promise}: {mark}");
        }
        text
    }
}

fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let model = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = model
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    format!(
        "Machine: {cores} cores, {}.",
        model.unwrap_or("of an unknown kind")
    )
}
