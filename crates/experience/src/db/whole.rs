//! SQL to be loaded, to its end: half of a dump must not be taken for all of it.

use std::io::{Error, ErrorKind, Read, Result};

/// How `pg_dump` begins, after a line of dashes, and how it ends.
const BEGIN: &[u8] = b"-- PostgreSQL database dump\n";
const END: &[u8] = b"\n-- PostgreSQL database dump complete\n";
/// Wherein the beginning is looked for.
const HEAD_BYTES: usize = 1024;

/// Reads as what it reads from, but at the end of half a dump, or of nothing at all, it fails.
pub struct Whole<R> {
    input: R,
    head: Vec<u8>,
    /// What may be the first part of the end.
    last: Vec<u8>,
    ended: bool,
}

impl<R: Read> Whole<R> {
    pub fn new(input: R) -> Self {
        Self {
            input,
            head: Vec::new(),
            last: Vec::new(),
            ended: false,
        }
    }

    fn remember(&mut self, bytes: &[u8]) {
        let missing = HEAD_BYTES - self.head.len();
        self.head.extend(bytes.iter().take(missing));
        self.last.extend(bytes);
        self.ended |= contains(&self.last, END);
        let surplus = self.last.len().saturating_sub(END.len() - 1);
        self.last.drain(..surplus);
    }

    fn end(&self) -> Result<usize> {
        let cut_off = contains(&self.head, BEGIN) && !self.ended;
        let is_short = self.head.len() < HEAD_BYTES;
        let is_empty = is_short && self.head.trim_ascii().is_empty();
        let why = match (cut_off, is_empty) {
            (true, _) => "this dump breaks off before its end",
            (_, true) => "there is nothing in it",
            _ => return Ok(0),
        };
        Err(Error::new(ErrorKind::UnexpectedEof, why))
    }
}

impl<R: Read> Read for Whole<R> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let count = self.input.read(buffer)?;
        if count == 0 && !buffer.is_empty() {
            return self.end();
        }
        self.remember(&buffer[..count]);
        Ok(count)
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_dump_and_nothing_at_all_fail_at_their_end() {
        let rows = "insert into t values (1);\n".repeat(1000);
        let head = "--\n-- PostgreSQL database dump\n--\n\n";
        let tail = "--\n-- PostgreSQL database dump complete\n--\n\n";
        let restricted = format!("{tail}\\unrestrict {}\n\n", "k".repeat(63));
        for (text, fails) in [
            (format!("{head}{rows}{tail}"), None),
            (format!("{head}{rows}{restricted}"), None),
            (format!("{head}{tail}"), None),
            (rows.clone(), None),
            (format!("{head}{rows}"), Some("breaks off")),
            (head.to_owned(), Some("breaks off")),
            (format!("{head}{tail}{rows}"), None),
            (" \n".to_owned(), Some("nothing in it")),
            (String::new(), Some("nothing in it")),
        ] {
            for piece in [1, 100, 1 << 20] {
                let pieces = text.as_bytes().chunks(piece);
                let mut whole = Whole::new(Pieces(pieces.collect()));
                let mut read = Vec::new();
                let said = whole.read_to_end(&mut read).err();
                assert_eq!(read, text.as_bytes());
                let said = said.map(|error| error.to_string()).unwrap_or_default();
                assert_eq!(said.is_empty(), fails.is_none(), "{said}: {text}");
                assert!(said.contains(fails.unwrap_or_default()), "{said}");
            }
        }
    }

    struct Pieces<'a>(std::collections::VecDeque<&'a [u8]>);

    impl Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
            let Some(mut piece) = self.0.pop_front() else {
                return Ok(0);
            };
            let count = piece.read(buffer)?;
            if !piece.is_empty() {
                self.0.push_front(piece);
            }
            Ok(count)
        }
    }
}
