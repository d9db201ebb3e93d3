//! Tables for people, JSON and YAML for programs. Nothing that others wrote steers a terminal: see [`shown`].

use std::borrow::Cow;
use std::io::{IsTerminal, Write};

use comfy_table::Table;
use jiff::Timestamp;
use serde::Serialize;

use crate::failure::Failure;
use crate::notice;

/// `-o json|yaml`, for everything that lists or reports.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Output {
    /// Print for programs, in a shape that stays: what the API answers, whole
    #[arg(short, long = "output", value_name = "FORMAT")]
    pub output: Option<Format>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Json,
    Yaml,
}

impl Output {
    /// Prints values for programs, or what `people` makes of them.
    pub fn print<T: Serialize + ?Sized>(
        &self,
        value: &T,
        people: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        let text = match self.output {
            Some(Format::Json) => {
                serde_json::to_string_pretty(value).map_err(Failure::from_error)?
            }
            Some(Format::Yaml) => serde_yaml_ng::to_string(value).map_err(Failure::from_error)?,
            None => people(),
        };
        match self.output {
            Some(Format::Json) if std::io::stdout().is_terminal() => {
                write_out(&escaped(text.trim_end(), json_escape))
            }
            _ => say(text.trim_end()),
        }
    }

    /// Prints a list. Of an empty one people are told beside the output what there is none of.
    pub fn list<T: Serialize>(
        &self,
        items: &[T],
        none: &str,
        people: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        if items.is_empty() && self.is_for_people() {
            notice(none);
            return Ok(());
        }
        self.print(items, people)
    }

    pub fn is_for_people(&self) -> bool {
        self.output.is_none()
    }
}

/// One value of a stream that goes on: a line of JSON, or a YAML document.
pub fn one_of_many(format: Format, value: &impl Serialize) -> Result<String, Failure> {
    match format {
        Format::Json => {
            let text = serde_json::to_string(value).map_err(Failure::from_error)?;
            Ok(match std::io::stdout().is_terminal() {
                true => escaped(&text, json_escape).into_owned(),
                false => text,
            })
        }
        Format::Yaml => serde_yaml_ng::to_string(value)
            .map(|text| format!("---\n{}", text.trim_end()))
            .map_err(Failure::from_error),
    }
}

/// Prints to stdout; a reader that has gone is no failure. On a terminal nothing in the text acts on it.
pub fn say(text: &str) -> Result<(), Failure> {
    match std::io::stdout().is_terminal() {
        true => write_out(&shown(text)),
        false => write_out(text),
    }
}

/// The text with every character escaped that acts on a terminal or hides what is written: ESC (colours, titles, the clipboard), all other
/// control characters, those that turn the direction of writing (<https://trojansource.codes>) and those that can't be seen. ESC is shown as
/// `\x1b`, U+202E as `\u{202e}`. A newline and a tab stay: see [`line`].
pub fn shown(text: &str) -> Cow<'_, str> {
    escaped(text, people_escape)
}

/// As [`shown`], and newlines escaped as well: for what is to be one line, or one cell of a table.
pub fn line(text: &str) -> Cow<'_, str> {
    match shown(text) {
        shown if shown.contains('\n') => Cow::Owned(shown.replace('\n', "\\n")),
        shown => shown,
    }
}

/// For stderr: as it is where a program reads, [`shown`] on a terminal.
pub fn for_stderr(text: &str) -> Cow<'_, str> {
    match std::io::stderr().is_terminal() {
        true => shown(text),
        false => Cow::Borrowed(text),
    }
}

fn escaped(text: &str, escape: fn(char) -> String) -> Cow<'_, str> {
    if !text.chars().any(acts) {
        return Cow::Borrowed(text);
    }
    let mut all = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match acts(character) {
            true => all.push_str(&escape(character)),
            false => all.push(character),
        }
    }
    Cow::Owned(all)
}

/// Whether a character does something else than stand there. The two joiners (U+200C, U+200D) are left alone: scripts and emoji need them.
fn acts(character: char) -> bool {
    match character {
        '\n' | '\t' => false,
        // Marks and overrides of direction, lines and paragraphs of Unicode, what takes no room, and tags.
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' => true,
        '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' => true,
        '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}' => true,
        _ => character.is_control(),
    }
}

fn people_escape(character: char) -> String {
    match character {
        '\r' => "\\r".to_owned(),
        '\0'..='\x7f' => format!("\\x{:02x}", u32::from(character)),
        _ => character.escape_unicode().to_string(),
    }
}

/// As a JSON string has it: these stand nowhere else in JSON.
fn json_escape(character: char) -> String {
    let mut units = [0; 2];
    let units = character.encode_utf16(&mut units).iter();
    units.map(|unit| format!("\\u{unit:04x}")).collect()
}

fn write_out(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{text}")?;
    stdout.flush()?;
    Ok(())
}

/// A table without frames, as `ps` prints it.
pub fn table<const N: usize>(
    head: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table
        .load_preset(comfy_table::presets::NOTHING)
        .set_header(head);
    for row in rows {
        table.add_row(row.map(|cell| line(&cell).into_owned()));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text = table.to_string();
    text.lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect()
}

/// `3s`, `5m`, `2h`, `4d` since then.
pub fn age(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(then).as_secs();
    coarse(u64::try_from(seconds).unwrap_or(0))
}

/// A length of time, as [`age`] tells it.
pub fn span(milliseconds: u64) -> String {
    coarse(milliseconds / 1000)
}

fn coarse(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A size for people: `512 B`, `1.5 MiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match bytes {
        0..1024 => format!("{bytes} B"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

/// What a person should know besides, a line each.
pub fn warnings(warnings: &[String]) -> String {
    let lines = warnings.iter();
    lines.map(|warning| format!("\n! {warning}")).collect()
}

/// `1 copy`, `3 copies`.
pub fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// The name of an enum's value as it travels: `running`.
pub fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}

pub fn dash<T: std::fmt::Display>(value: &Option<T>) -> String {
    value.as_ref().map_or("-".to_owned(), T::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_grow_coarser() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let ago = |seconds: i64| age(Timestamp::from_second(1_000_000 - seconds).unwrap(), now);
        assert_eq!(
            [ago(5), ago(119), ago(300), ago(7200), ago(200_000)],
            ["5s", "119s", "5m", "2h", "2d"]
        );
        assert_eq!(ago(-10), "0s", "a clock that runs ahead");
    }

    #[test]
    fn sizes_and_spans_are_for_people() {
        assert_eq!(
            [0, 1023, 1024, 1536 << 10, 3 << 30].map(size),
            ["0 B", "1023 B", "1.0 KiB", "1.5 MiB", "3.0 GiB"]
        );
        assert_eq!([0, 1999, 300_000].map(span), ["0s", "1s", "5m"]);
        assert!(span(u64::MAX).ends_with('d'), "and no panic");
    }

    #[test]
    fn what_acts_on_a_terminal_is_shown() {
        let table = [
            (
                "plain ä 漢字 👩\u{200d}🚀\ttab",
                "plain ä 漢字 👩\u{200d}🚀\ttab",
            ),
            ("two\nlines", "two\nlines"),
            ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
            ("\x1b]52;c;ZWNobw==\x1b\\", r"\x1b]52;c;ZWNobw==\x1b\"),
            ("\x1b[2J\x1b[31mred", r"\x1b[2J\x1b[31mred"),
            ("a\0b\x7f\x08", r"a\x00b\x7f\x08"),
            ("\u{9b}31m\u{9d}0;t\u{9c}", r"\u{9b}31m\u{9d}0;t\u{9c}"),
            ("over\rwritten", r"over\rwritten"),
            ("user\u{202e}gpj.exe", r"user\u{202e}gpj.exe"),
            (
                "\u{2066}x\u{2069}\u{200f}\u{61c}",
                r"\u{2066}x\u{2069}\u{200f}\u{61c}",
            ),
            (
                "a\u{2028}b\u{200b}c\u{feff}\u{e0041}",
                r"a\u{2028}b\u{200b}c\u{feff}\u{e0041}",
            ),
        ];
        for (text, expected) in table {
            assert_eq!(shown(text), expected, "{text:?}");
        }
        assert_eq!(line("a\nb"), r"a\nb");
        let json = serde_json::to_string("\u{9b}\u{202e}\u{e0041}\x1b").unwrap();
        let safe = escaped(&json, json_escape);
        assert_eq!(safe, r#""\u009b\u202e\udb40\udc41\u001b""#);
        let back: String = serde_json::from_str(&safe).unwrap();
        assert_eq!(
            back, "\u{9b}\u{202e}\u{e0041}\x1b",
            "and it is the same value"
        );
    }

    #[test]
    fn a_cell_is_one_line_and_steers_nothing() {
        let text = table(["NAME"], [["a\nb\x1b[2J".to_owned()]]);
        assert_eq!(text, "NAME\na\\nb\\x1b[2J\n");
    }

    #[test]
    fn a_table_has_no_frame_and_no_trailing_blanks() {
        let text = table(["NAME", "STATE"], [["a".to_owned(), "running".to_owned()]]);
        assert_eq!(text, "NAME  STATE\na     running\n");
    }
}
