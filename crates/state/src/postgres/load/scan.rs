//! Reads SQL as psql does, statement by statement, and takes out what is not for this database. Pure.
//!
//! ```text
//!  SQL ──► piece ──┬── a statement ──► kept, left out ([`statement`]) or refused
//!                  ├── rows of a COPY ──► kept as they are
//!                  └── \command ──► left out where it does nothing here, else refused: psql can run programs and read files
//! ```
//!
//! What is left out leaves its line breaks, so that the numbers in PostgreSQL's errors are those of the file.

use std::collections::{BTreeMap, BTreeSet};

use super::statement::{self, Here, Verdict};

/// What is looked at of one statement. A longer one is none of those that are left out.
const STATEMENT_BYTES: usize = 64 << 10;
/// Names that a summary tells.
const NAMED_MOST: usize = 5;

/// Commands of psql that change only what psql shows, or what a transaction around all of it makes needless.
const IDLE: [&str; 9] = [
    "restrict",
    "unrestrict",
    "echo",
    "qecho",
    "warn",
    "timing",
    "pset",
    "x",
    "t",
];

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error(
        "line {line}: the psql command \\{command} is refused: what is loaded is SQL, and psql's commands can run programs and read files; take the line out"
    )]
    Command { line: u64, command: String },
    #[error(
        "line {line}: after \\connect {first} comes \\connect {second}: this is of several databases, and loaded would be one; dump each by itself (pg_dump)"
    )]
    SecondDatabase {
        line: u64,
        first: String,
        second: String,
    },
    #[error("line {line}: {what}")]
    Statement { line: u64, what: String },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Inside {
    Statement,
    /// `'…'`; with backslashes, if it began with E.
    Text {
        escapes: bool,
    },
    Name,
    Dollars(Vec<u8>),
    Comment {
        depth: u32,
    },
}

/// What was left out, for people.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct LeftOut(BTreeMap<&'static str, (u64, BTreeSet<String>)>);

impl LeftOut {
    fn count(&mut self, what: &'static str, names: Vec<String>) {
        let (count, known) = self.0.entry(what).or_default();
        *count += 1;
        known.extend(names);
    }

    pub fn lines(&self) -> Vec<String> {
        let line = |(what, (count, names)): (&&str, &(u64, BTreeSet<String>))| {
            let some: Vec<&str> = names.iter().take(NAMED_MOST).map(String::as_str).collect();
            let more = names.len() - some.len();
            let more = if more == 0 {
                String::new()
            } else {
                format!(" and {more} more")
            };
            let named = if some.is_empty() {
                String::new()
            } else {
                format!(" ({}{more})", some.join(", "))
            };
            format!("left out {count} × {what}{named}")
        };
        self.0.iter().map(line).collect()
    }
}

/// Reads lines, and gives what of them psql is to read.
pub struct Scan {
    here: Here,
    line: u64,
    inside: Inside,
    /// Rows of a COPY follow, to a line with `\.`.
    rows: bool,
    parentheses: u32,
    /// Of the statement that is read: what is held back of it, and the same without comments, with texts and names emptied of what could be
    /// taken for words.
    held: Vec<u8>,
    bare: Vec<u8>,
    began: u64,
    /// It is too long to be held back.
    passing: bool,
    /// Among the large objects of a dump, which have a transaction of their own.
    objects: bool,
    database: Option<String>,
    pub left_out: LeftOut,
}

impl Scan {
    /// `here`: what may be named.
    pub fn new(here: Here) -> Self {
        Self {
            here,
            line: 0,
            inside: Inside::Statement,
            rows: false,
            parentheses: 0,
            held: Vec::new(),
            bare: Vec::new(),
            began: 1,
            passing: false,
            objects: false,
            database: None,
            left_out: LeftOut::default(),
        }
    }

    /// One line with its end; what psql is to read is added to `out`.
    ///
    /// # Errors
    ///
    /// It is not to be loaded.
    pub fn line(&mut self, line: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        self.line += 1;
        if self.rows {
            out.extend_from_slice(line);
            self.rows = line.trim_ascii_end() != b"\\.";
            return Ok(());
        }
        if self.is_between() && line.starts_with(b"--") {
            self.section(line);
        }
        let mut at = 0;
        while at < line.len() {
            at += self.step(line, at, out)?;
        }
        let is_between = self.is_between();
        if self.passing || is_between {
            out.append(&mut self.held);
        }
        if is_between {
            self.bare.clear();
        }
        Ok(())
    }

    /// Whether it ends amid something.
    pub fn is_cut_off(&self) -> bool {
        self.rows || self.inside != Inside::Statement
    }

    /// What the SQL ends with: the rest of a statement without its semicolon.
    ///
    /// # Errors
    ///
    /// It is not to be loaded.
    pub fn end(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        if !self.is_between() && !self.is_cut_off() {
            self.line(b"\n;\n", out)?;
        }
        out.append(&mut self.held);
        Ok(())
    }

    fn is_between(&self) -> bool {
        self.inside == Inside::Statement && self.bare.trim_ascii().is_empty() && !self.passing
    }

    /// `-- Name: …; Type: BLOBS; …`, as pg_dump heads what follows.
    fn section(&mut self, line: &[u8]) {
        if let Some(at) = find(line, b"; Type: ") {
            self.objects = line[at..].starts_with(b"; Type: BLOBS;");
        }
    }

    /// Reads at least one byte of the line, from `at` on. How many.
    fn step(&mut self, line: &[u8], at: usize, out: &mut Vec<u8>) -> Result<usize, Error> {
        let rest = &line[at..];
        let inside = self.inside.clone();
        match inside {
            Inside::Statement => self.in_statement(line, at, out),
            Inside::Text { escapes } => {
                let length = match (rest[0], rest.get(1)) {
                    (b'\\', Some(_)) if escapes => 2,
                    (b'\'', Some(b'\'')) => 2,
                    (b'\'', _) => {
                        self.inside = Inside::Statement;
                        self.bare.push(b'\'');
                        1
                    }
                    _ => 1,
                };
                Ok(self.hold(rest, length))
            }
            Inside::Name => {
                if rest[0] == b'"' {
                    self.inside = Inside::Statement;
                }
                // Names of roles are looked at.
                let byte = if rest[0].is_ascii_whitespace() || rest[0] == b';' {
                    b'_'
                } else {
                    rest[0]
                };
                self.bare.push(byte);
                Ok(self.hold(rest, 1))
            }
            Inside::Dollars(tag) => {
                let ends = rest.starts_with(&tag);
                if ends {
                    self.inside = Inside::Statement;
                    self.bare.push(b'\'');
                }
                Ok(self.hold(rest, if ends { tag.len() } else { 1 }))
            }
            Inside::Comment { depth } => {
                let (depth, length) = match (rest[0], rest.get(1)) {
                    (b'*', Some(b'/')) => (depth - 1, 2),
                    (b'/', Some(b'*')) => (depth + 1, 2),
                    _ => (depth, 1),
                };
                self.inside = match depth {
                    0 => Inside::Statement,
                    depth => Inside::Comment { depth },
                };
                Ok(self.hold(rest, length))
            }
        }
    }

    fn in_statement(&mut self, line: &[u8], at: usize, out: &mut Vec<u8>) -> Result<usize, Error> {
        let rest = &line[at..];
        let before = at.checked_sub(1).map(|before| line[before]);
        match (rest[0], rest.get(1)) {
            (b'-', Some(b'-')) => return Ok(self.hold(rest, rest.len())),
            (b'/', Some(b'*')) => {
                self.inside = Inside::Comment { depth: 1 };
                self.bare.push(b' ');
                return Ok(self.hold(rest, 2));
            }
            (b'\\', _) => return self.command(rest, out),
            (b';', _) if self.parentheses == 0 => {
                self.hold(rest, 1);
                self.statement(&rest[1..], out)?;
                return Ok(1);
            }
            (b'$', _) if !before.is_some_and(is_of_name) => {
                if let Some(length) = tag(rest) {
                    self.inside = Inside::Dollars(rest[..length].to_vec());
                    self.bare.push(b'\'');
                    return Ok(self.hold(rest, length));
                }
            }
            (b'\'', _) => {
                let of_name = at.checked_sub(2).is_some_and(|two| is_of_name(line[two]));
                let escapes = matches!(before, Some(b'e' | b'E')) && !of_name;
                self.inside = Inside::Text { escapes };
            }
            (b'"', _) => self.inside = Inside::Name,
            (b'(', _) => self.parentheses += 1,
            (b')', _) => self.parentheses = self.parentheses.saturating_sub(1),
            _ => {}
        }
        if self.bare.trim_ascii().is_empty() && !rest[0].is_ascii_whitespace() {
            self.began = self.line;
        }
        self.bare.push(rest[0]);
        Ok(self.hold(rest, 1))
    }

    fn hold(&mut self, rest: &[u8], length: usize) -> usize {
        let length = length.min(rest.len());
        self.held.extend_from_slice(&rest[..length]);
        self.passing |= self.held.len() > STATEMENT_BYTES;
        self.bare.truncate(STATEMENT_BYTES);
        length
    }

    /// One is whole.
    fn statement(&mut self, after: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        let held = std::mem::take(&mut self.held);
        let bare = std::mem::take(&mut self.bare);
        let passed = std::mem::take(&mut self.passing);
        let text = String::from_utf8_lossy(&bare);
        let verdict = statement::judge(&text, self.objects, &self.here);
        match verdict {
            Verdict::Keep => {}
            Verdict::Rows if after.trim_ascii().is_empty() => self.rows = true,
            Verdict::Rows => {
                return Err(
                    self.wrong("after COPY … FROM stdin; its rows begin with the next line")
                );
            }
            Verdict::Refuse(what) => return Err(self.wrong(&what)),
            Verdict::LeaveOut(..) if passed => {}
            Verdict::LeaveOut(what, names) => {
                if !what.is_empty() {
                    self.left_out.count(what, names);
                }
                out.extend(held.iter().filter(|byte| **byte == b'\n'));
                return Ok(());
            }
        }
        out.extend_from_slice(&held);
        Ok(())
    }

    fn wrong(&self, what: &str) -> Error {
        Error::Statement {
            line: self.began,
            what: what.to_owned(),
        }
    }

    /// A command of psql: it takes the rest of the line.
    fn command(&mut self, rest: &[u8], out: &mut Vec<u8>) -> Result<usize, Error> {
        let text = String::from_utf8_lossy(rest).trim_end().to_owned();
        let words = text.trim_start_matches('\\').to_owned();
        let mut words = words.split_whitespace();
        let command = words.next().unwrap_or_default().to_owned();
        let argument = words.next().unwrap_or_default().to_owned();
        let refused = Error::Command {
            line: self.line,
            command: command.clone(),
        };
        if !self.is_between() || !text.starts_with('\\') || text.contains('`') {
            return Err(refused);
        }
        match command.as_str() {
            idle if IDLE.contains(&idle) => {}
            "set" if matches!(&*argument, "ON_ERROR_STOP" | "QUIET" | "ECHO" | "VERBOSITY") => {}
            "connect" | "c" => {
                let name = argument.trim_start_matches("-reuse-previous=on").to_owned();
                if let Some(first) = &self.database
                    && *first != name
                {
                    return Err(Error::SecondDatabase {
                        line: self.line,
                        first: first.clone(),
                        second: name,
                    });
                }
                self.left_out.count("\\connect", vec![name.clone()]);
                self.database = Some(name);
            }
            _ => return Err(refused),
        }
        out.append(&mut self.held);
        out.push(b'\n');
        Ok(rest.len())
    }
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte >= 0x80
}

/// The length of `$tag$`, if the text begins with one.
fn tag(text: &[u8]) -> Option<usize> {
    let end = text.iter().skip(1).position(|byte| *byte == b'$')? + 1;
    let name = &text[1..end];
    let starts_well = name.first().is_none_or(|first| !first.is_ascii_digit());
    let is_name = name.iter().all(|byte| is_of_name(*byte) && *byte != b'$');
    (starts_well && is_name).then_some(end + 1)
}

#[cfg(test)]
#[path = "scan_tests.rs"]
mod tests;
