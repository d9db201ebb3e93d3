//! What a bench has to say: rows, what they were measured on and beside, and what had to hold.

use std::fmt::Write as _;

use serde::Serialize;

/// One or more tables of one bench.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Its name on the command line, and of its file in `bench/`.
    pub name: &'static str,
    pub title: &'static str,
    /// What was done, a paragraph each.
    pub setting: Vec<String>,
    pub tables: Vec<Table>,
    /// Machine, disk, versions: name and value.
    pub facts: Vec<(String, String)>,
    pub holds: Vec<Hold>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Table {
    pub columns: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

/// A number that DESIGN promises.
#[derive(Debug, Clone, Serialize)]
pub struct Hold {
    pub promise: String,
    pub measured: String,
    pub held: bool,
}

impl Table {
    pub fn new(columns: &[&str]) -> Self {
        let columns = columns.iter().map(|name| (*name).to_owned()).collect();
        Self {
            columns,
            rows: Vec::new(),
        }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    fn write_markdown(&self, text: &mut String) {
        let rule: Vec<String> = self.columns.iter().map(|_| "---".to_owned()).collect();
        let head = [&self.columns, &rule];
        for cells in head.into_iter().chain(&self.rows) {
            let _ = writeln!(text, "| {} |", cells.join(" | "));
        }
    }
}

impl Report {
    /// With the machine among the facts already.
    pub fn new(name: &'static str, title: &'static str) -> Self {
        Self {
            name,
            title,
            setting: Vec::new(),
            tables: Vec::new(),
            facts: machine(),
            holds: Vec::new(),
        }
    }

    pub fn say(&mut self, paragraph: impl Into<String>) {
        self.setting.push(paragraph.into());
    }

    pub fn fact(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.facts.push((name.into(), value.into()));
    }

    pub fn hold(&mut self, promise: impl Into<String>, measured: impl Into<String>, held: bool) {
        self.holds.push(Hold {
            promise: promise.into(),
            measured: measured.into(),
            held,
        });
    }

    /// Promises that were not kept.
    pub fn missed(&self) -> impl Iterator<Item = &Hold> {
        self.holds.iter().filter(|hold| !hold.held)
    }

    pub fn to_markdown(&self) -> String {
        let mut text = format!("# {}\n", self.title);
        for paragraph in &self.setting {
            let _ = write!(text, "\n{paragraph}\n");
        }
        for table in &self.tables {
            text.push('\n');
            table.write_markdown(&mut text);
        }
        self.write_holds(&mut text);
        text.push('\n');
        for (name, value) in &self.facts {
            let _ = writeln!(text, "- {name}: {value}");
        }
        text
    }

    /// # Panics
    ///
    /// Never: it is text and truth values alone.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("text and truth values can be written")
    }

    fn write_holds(&self, text: &mut String) {
        if !self.holds.is_empty() {
            text.push('\n');
        }
        for hold in &self.holds {
            let verdict = if hold.held { "held" } else { "**missed**" };
            let _ = writeln!(text, "- {}: {verdict}, {}", hold.promise, hold.measured);
        }
    }
}

fn machine() -> Vec<(String, String)> {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let model = field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned());
    let memory = field("/proc/meminfo", "MemTotal").unwrap_or_else(|| "unknown".to_owned());
    let uname = rustix::system::uname();
    let kernel = uname.release().to_string_lossy().into_owned();
    let today = jiff::Timestamp::now().strftime("%Y-%m-%d").to_string();
    let facts = [
        ("measured on", today),
        ("machine", format!("{cores} cores, {model}, {memory}")),
        ("kernel", kernel),
    ];
    facts.map(|(name, value)| (name.to_owned(), value)).into()
}

/// The first value of a field in a file of `name : value` lines.
fn field(path: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// `12,345`: digits in groups of three.
pub fn grouped(number: f64) -> String {
    let digits = format!("{:.0}", number.abs());
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_stand_in_groups() {
        for (number, text) in [
            (0.4, "0"),
            (999.0, "999"),
            (1000.0, "1,000"),
            (1_234_567.0, "1,234,567"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn a_missed_promise_is_seen() {
        let mut report = Report::new("x", "X");
        report.hold("kept", "2", true);
        assert_eq!(report.missed().count(), 0);
        report.hold("fast", "1", false);
        assert_eq!(
            report
                .missed()
                .map(|hold| &*hold.promise)
                .collect::<Vec<_>>(),
            ["fast"]
        );
        assert!(report.to_markdown().contains("- fast: **missed**, 1\n"));
    }
}
