//! YAML to nodes that know where they stand, within bounds: no input is too large, too deep, or unfolds into more than it is.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, StrInput, Tag};

use super::Position;

/// The largest file that is read. Bytes.
pub const SIZE_MAX: usize = 1 << 20;
/// Values in a file, those that aliases repeat counted each time.
const VALUES_MAX: usize = 100_000;
/// Mappings and lists inside each other; the deepest that has a meaning is 7.
const DEPTH_MAX: usize = 24;

/// A value and where it begins.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub position: Position,
    pub value: Value,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    /// The text as written, so that `1.10` stays `1.10`. `plain`: without quotes, so that it may be a number, a truth value or nothing.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub key: String,
    pub key_position: Position,
    pub value: Node,
}

/// Why a text is not a document.
#[derive(Debug)]
pub(super) struct Fault {
    pub position: Position,
    pub message: String,
}

impl Node {
    /// The value of a key: `None` where there is no such key, or no mapping.
    pub fn get(&self, key: &str) -> Option<&Self> {
        self.entry(key).map(|entry| &entry.value)
    }

    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| entry.key == key)
    }

    pub fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    pub fn keys(&self) -> Vec<&str> {
        self.entries()
            .iter()
            .map(|entry| entry.key.as_str())
            .collect()
    }

    pub fn items(&self) -> &[Self] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    /// The text of a scalar as written; `None` for nothing, lists and mappings.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, .. } if !self.is_nothing() => Some(text),
            _ => None,
        }
    }

    /// The text of a scalar under `key`, read as a `T`. `None` also where it can't be: its shape has reported that.
    pub fn parsed<T: std::str::FromStr>(&self, key: &str) -> Option<T> {
        self.get(key)?.text()?.parse().ok()
    }

    pub fn is_nothing(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null"))
    }

    /// `~` or `null`, and not a value that was left out.
    pub fn is_explicit_nothing(&self) -> bool {
        self.is_nothing() && !matches!(&self.value, Value::Scalar { text, .. } if text.is_empty())
    }

    /// How many values it holds, itself included, and how deep it is.
    fn measure(&self) -> (usize, usize) {
        let inner: Vec<(usize, usize)> = match &self.value {
            Value::Scalar { .. } => Vec::new(),
            Value::List(items) => items.iter().map(Self::measure).collect(),
            Value::Map(entries) => entries.iter().map(|entry| entry.value.measure()).collect(),
        };
        let values: usize = inner.iter().map(|(values, _)| values).sum();
        let depth = inner.iter().map(|(_, depth)| *depth).max().unwrap_or(0);
        (values + 1, depth + 1)
    }
}

/// Reads the one document of `text`.
pub(super) fn load(text: &str) -> Result<Node, Fault> {
    if text.len() > SIZE_MAX {
        return Err(fault(
            Position::START,
            "the file is larger than 1 MiB, the most that is read",
        ));
    }
    Loader {
        parser: Parser::new_from_str(text),
        values_left: VALUES_MAX,
        anchors: HashMap::new(),
    }
    .document()
}

fn fault(position: Position, message: impl Into<String>) -> Fault {
    Fault {
        position,
        message: message.into(),
    }
}

struct Loader<'text> {
    parser: Parser<'text, StrInput<'text>>,
    values_left: usize,
    anchors: HashMap<usize, Node>,
}

type Step<'text> = (Event<'text>, Position);

impl<'text> Loader<'text> {
    fn document(mut self) -> Result<Node, Fault> {
        loop {
            match self.next()? {
                (Event::StreamStart | Event::DocumentStart(_) | Event::Nothing, _) => {}
                (Event::StreamEnd, _) => {
                    return Err(fault(
                        Position::START,
                        "the file is empty: it needs at least a `project` and a service",
                    ));
                }
                step => {
                    let root = self.node(step, 1)?;
                    self.end()?;
                    return Ok(root);
                }
            }
        }
    }

    /// Nothing may follow the first document: which of two would be meant?
    fn end(&mut self) -> Result<(), Fault> {
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => return Ok(()),
                (Event::DocumentEnd | Event::Nothing, _) => {}
                (_, position) => {
                    return Err(fault(
                        position,
                        "a second document begins here: a file holds one",
                    ));
                }
            }
        }
    }

    fn next(&mut self) -> Result<Step<'text>, Fault> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, position_of(&span.start))),
            Some(Err(error)) => Err(syntax(&error)),
            None => Ok((Event::StreamEnd, Position::START)),
        }
    }

    fn node(&mut self, (event, position): Step<'text>, depth: usize) -> Result<Node, Fault> {
        if depth > DEPTH_MAX {
            return Err(fault(
                position,
                format!("nested deeper than {DEPTH_MAX} levels"),
            ));
        }
        self.count(1, position)?;
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && !is_text(tag.as_deref(), position)?;
                let text = text.into_owned();
                (Value::Scalar { text, plain }, anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                no_tag(tag.as_deref(), position)?;
                (Value::List(self.list(depth)?), anchor)
            }
            Event::MappingStart(anchor, tag) => {
                no_tag(tag.as_deref(), position)?;
                (Value::Map(self.map(depth)?), anchor)
            }
            Event::Alias(anchor) => (self.alias(anchor, position, depth)?, 0),
            _ => return Err(fault(position, "a value is missing here")),
        };
        let node = Node { position, value };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Node>, Fault> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(items),
                step => items.push(self.node(step, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Vec<Entry>, Fault> {
        let mut entries = Vec::new();
        loop {
            let step = match self.next()? {
                (Event::MappingEnd, _) => return Ok(entries),
                step => step,
            };
            let key = self.node(step, depth + 1)?;
            let key_position = key.position;
            let Value::Scalar { text: key, .. } = key.value else {
                return Err(fault(key_position, "a key must be a text"));
            };
            let step = self.next()?;
            let value = self.node(step, depth + 1)?;
            entries.push(Entry {
                key,
                key_position,
                value,
            });
        }
    }

    fn alias(&mut self, anchor: usize, position: Position, depth: usize) -> Result<Value, Fault> {
        // An anchor is known when its value is complete, so that nothing can hold itself.
        let Some(node) = self.anchors.get(&anchor) else {
            return Err(fault(
                position,
                "an alias can't stand inside of what it repeats",
            ));
        };
        let (values, levels) = node.measure();
        if depth + levels - 1 > DEPTH_MAX {
            return Err(fault(
                position,
                format!("nested deeper than {DEPTH_MAX} levels"),
            ));
        }
        let value = node.value.clone();
        self.count(values, position)?;
        Ok(value)
    }

    fn count(&mut self, values: usize, position: Position) -> Result<(), Fault> {
        let left = self.values_left.checked_sub(values);
        self.values_left = left.ok_or_else(|| {
            fault(
                position,
                format!("more than {VALUES_MAX} values, the most that are read (aliases count each time)"),
            )
        })?;
        Ok(())
    }
}

fn position_of(marker: &Marker) -> Position {
    Position {
        line: marker.line().max(1),
        column: marker.col() + 1,
    }
}

fn syntax(error: &ScanError) -> Fault {
    fault(
        position_of(error.marker()),
        format!("not YAML: {}", error.info()),
    )
}

/// Whether a tag says that a scalar is a text whatever it looks like.
fn is_text(tag: Option<&Tag>, position: Position) -> Result<bool, Fault> {
    match tag {
        None => Ok(false),
        Some(tag) if tag.is_yaml_core_schema() => Ok(tag.suffix == "str"),
        Some(tag) if tag.handle.is_empty() && tag.suffix == "!" => Ok(true),
        Some(_) => no_tag(tag, position).map(|()| false),
    }
}

fn no_tag(tag: Option<&Tag>, position: Position) -> Result<(), Fault> {
    match tag {
        Some(tag) if !tag.is_yaml_core_schema() => Err(fault(
            position,
            format!("the tag `{tag}` has no meaning here"),
        )),
        _ => Ok(()),
    }
}
