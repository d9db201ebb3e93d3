//! Nodes against shapes: whatever does not fit is reported with its place, and the rest is looked at all the same.

use std::collections::{HashMap, HashSet};

use crate::compute::programs;

use super::document::{Entry, Node, Value};
use super::foreign::our_word;
use super::keys::{Entries, Form, Key, Shape};
use super::{Manifest, Position, Problem};

/// Problems that are kept; a file with more has one problem.
pub(super) const PROBLEMS_MAX: usize = 100;
/// Longer texts are cut in messages and have no nearest name.
const SHOWN_MAX: usize = 60;

/// How strictly a mapping is read.
#[derive(Clone, Copy)]
pub(super) struct Mode {
    /// Part of a merge patch: nothing (`~`) removes a key.
    pub patch: bool,
    /// Required keys are asked for.
    pub required: bool,
}

/// Collects the problems of one file.
pub(super) struct Report {
    file: String,
    errors: Vec<Problem>,
    warnings: Vec<Problem>,
    /// What has been said: a merged file repeats the problems of its parts.
    said: HashSet<(Position, String)>,
}

/// Adds a hint to the problem just reported.
pub(super) struct Reported<'report>(Option<&'report mut Problem>);

impl Reported<'_> {
    pub fn hint(self, hint: impl Into<Option<String>>) {
        if let Some(problem) = self.0 {
            problem.hint = hint.into();
        }
    }
}

impl Report {
    pub fn new(file: &str) -> Self {
        Self {
            file: file.to_owned(),
            errors: Vec::new(),
            warnings: Vec::new(),
            said: HashSet::new(),
        }
    }

    pub fn error(
        &mut self,
        position: Position,
        path: &str,
        message: impl Into<String>,
    ) -> Reported<'_> {
        let message = message.into();
        if self.is_full() || !self.said.insert((position, message.clone())) {
            return Reported(None);
        }
        let problem = self.problem(position, path, message);
        self.errors.push(problem);
        Reported(self.errors.last_mut())
    }

    pub fn warning(
        &mut self,
        position: Position,
        path: &str,
        message: impl Into<String>,
    ) -> Reported<'_> {
        if self.warnings.len() >= PROBLEMS_MAX {
            return Reported(None);
        }
        let problem = self.problem(position, path, message.into());
        self.warnings.push(problem);
        Reported(self.warnings.last_mut())
    }

    /// Whether nothing more is kept, so that nothing more needs to be searched for a hint.
    pub fn is_full(&self) -> bool {
        self.errors.len() >= PROBLEMS_MAX
    }

    /// The manifest if it is whole, else what is wrong with it, in the order of the file.
    pub fn finish(mut self, manifest: Option<Manifest>) -> Result<Manifest, Vec<Problem>> {
        self.errors
            .sort_by_key(|problem| (problem.line, problem.column));
        self.warnings
            .sort_by_key(|problem| (problem.line, problem.column));
        match manifest {
            Some(manifest) if self.errors.is_empty() => Ok(Manifest {
                warnings: self.warnings,
                ..manifest
            }),
            _ => Err(self.errors),
        }
    }

    fn problem(&self, position: Position, path: &str, message: String) -> Problem {
        Problem {
            file: self.file.clone(),
            line: position.line,
            column: position.column,
            path: path.to_owned(),
            message,
            hint: None,
        }
    }

    /// Reports how `node` differs from `shape`. `owner` is where its key stands: what is missing inside it is missing there.
    pub fn check(&mut self, node: &Node, shape: &Shape, path: &str, owner: Position, mode: Mode) {
        if mode.patch && node.is_nothing() {
            return;
        }
        match (shape, &node.value) {
            (Shape::Text(form), Value::Scalar { text, .. }) if !node.is_nothing() => {
                self.form(text, form, path, node.position);
            }
            (Shape::Number { least, most }, Value::Scalar { text, plain: true })
                if !node.is_nothing() =>
            {
                let within = |number: u64| (*least..=*most).contains(&number);
                if !text.parse().is_ok_and(within) {
                    let message = format!("{} is not {}", shown(text), shape.expected());
                    self.error(node.position, path, message);
                }
            }
            (Shape::Flag, Value::Scalar { text, plain: true })
                if text == "true" || text == "false" => {}
            (Shape::List(item), Value::List(nodes)) => {
                for (index, node) in nodes.iter().enumerate() {
                    self.check(node, item, &format!("{path}[{index}]"), node.position, mode);
                }
            }
            (Shape::Fields(keys), Value::Map(entries)) => {
                self.fields(entries, keys, path, owner, mode)
            }
            (Shape::Patch(keys), Value::Map(entries)) => {
                let mode = Mode {
                    patch: true,
                    required: false,
                };
                self.fields(entries, keys, path, owner, mode);
            }
            (Shape::Entries(form), Value::Map(entries)) => {
                self.entries(entries, form, path, node.position, mode)
            }
            (Shape::OneOf(shapes), _) => match shapes.iter().find(|shape| shape.takes(node)) {
                Some(shape) => self.check(node, shape, path, owner, mode),
                None => self.misfit(node, shape, path),
            },
            (Shape::Later(message), _) => drop(self.error(owner, path, *message)),
            // An empty section: all its lines are commented out.
            (Shape::Fields(keys), _) if node.is_nothing() => {
                self.fields(&[], keys, path, owner, mode)
            }
            (Shape::List(_) | Shape::Entries(_) | Shape::Patch(_), _) if node.is_nothing() => {}
            _ => self.misfit(node, shape, path),
        }
    }

    fn misfit(&mut self, node: &Node, shape: &Shape, path: &str) {
        let found = match &node.value {
            _ if node.is_nothing() => "nothing".to_owned(),
            // What stands in place of a mapping may be a secret's value.
            Value::Scalar { .. } if shape.is_mapping() => "a text".to_owned(),
            Value::Scalar { text, plain: true } => shown(text),
            Value::Scalar { text, .. } => format!("the text {}", shown(text)),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a mapping".to_owned(),
        };
        let message = format!("expected {}, found {found}", shape.expected());
        self.error(node.position, path, message)
            .hint(remedy(shape, path, node));
    }

    fn form(&mut self, text: &str, form: &Form, path: &str, position: Position) {
        if text.contains('\0') {
            self.error(position, path, programs::NUL);
        } else if text.len() > form.longest {
            self.error(
                position,
                path,
                format!("longer than {} bytes", form.longest),
            );
        } else if !form.words.is_empty() {
            if !form.words.contains(&text) {
                let message = format!("{} is not {}", shown(text), form.expected);
                let hint = nearest(text, form.words.iter().copied());
                self.error(position, path, message).hint(hint);
            }
        } else if let Err(message) = (form.check)(text) {
            self.error(position, path, message);
        }
    }

    fn fields(&mut self, entries: &[Entry], keys: &[Key], path: &str, owner: Position, mode: Mode) {
        self.duplicates(entries, path);
        for entry in entries {
            let Some(key) = keys.iter().find(|key| key.name == entry.key) else {
                self.unknown(entry, keys, path);
                continue;
            };
            let path = join(path, key.name);
            self.check(&entry.value, &key.shape, &path, entry.key_position, mode);
        }
        for key in keys.iter().filter(|key| key.required && mode.required) {
            if !entries.iter().any(|entry| entry.key == key.name) {
                self.error(owner, path, format!("missing key `{}`", key.name));
            }
        }
    }

    fn unknown(&mut self, entry: &Entry, keys: &[Key], path: &str) {
        if self.is_full() {
            return;
        }
        let known = keys
            .iter()
            .filter(|key| !matches!(key.shape, Shape::Later(_)))
            .map(|key| key.name);
        let hint = match entry.key.as_str() {
            "<<" => Some("merge keys are not supported: use `defaults`".to_owned()),
            name => our_word(path, name)
                .map(str::to_owned)
                .or_else(|| nearest(name, known.clone()))
                .or_else(|| listed(&known.collect::<Vec<_>>())),
        };
        let message = format!("unknown key {}", shown(&entry.key));
        self.error(entry.key_position, path, message).hint(hint);
    }

    fn entries(
        &mut self,
        entries: &[Entry],
        shape: &Entries,
        path: &str,
        position: Position,
        mode: Mode,
    ) {
        self.duplicates(entries, path);
        if shape.single && entries.len() != 1 {
            let message = format!(
                "expected one name with its options, found {}",
                entries.len()
            );
            self.error(position, path, message);
        } else if entries.len() > shape.most {
            let message = format!(
                "{} entries: {} is the most that is read",
                entries.len(),
                shape.most
            );
            self.error(position, path, message);
            return;
        }
        for entry in entries {
            let path = join(path, &entry.key);
            self.form(&entry.key, shape.key, &path, entry.key_position);
            if shape.unsets && entry.value.is_explicit_nothing() {
                continue;
            }
            self.check(&entry.value, &shape.value, &path, entry.key_position, mode);
        }
    }

    fn duplicates(&mut self, entries: &[Entry], path: &str) {
        let mut seen: HashMap<&str, Position> = HashMap::new();
        for entry in entries {
            match seen.get(entry.key.as_str()) {
                None => drop(seen.insert(&entry.key, entry.key_position)),
                Some(first) => {
                    let message = format!(
                        "{} is given twice, first in line {}",
                        shown(&entry.key),
                        first.line
                    );
                    self.error(entry.key_position, path, message);
                }
            }
        }
    }
}

impl Shape {
    fn is_mapping(&self) -> bool {
        matches!(self, Self::Fields(_) | Self::Entries(_) | Self::Patch(_))
    }

    /// Whether a value of the node's kind is meant to be of this shape.
    fn takes(&self, node: &Node) -> bool {
        match (self, &node.value) {
            (Self::Text(_) | Self::Number { .. } | Self::Flag, Value::Scalar { .. }) => {
                !node.is_nothing()
            }
            (Self::List(_), Value::List(_)) => true,
            (
                Self::Fields(_) | Self::Entries(_) | Self::Patch(_) | Self::Later(_),
                Value::Map(_),
            ) => true,
            _ => false,
        }
    }

    fn expected(&self) -> String {
        match self {
            Self::Text(form) => form.expected.to_owned(),
            Self::Number { least, most } => format!("a whole number from {least} to {most}"),
            Self::Flag => "`true` or `false`".to_owned(),
            Self::List(_) => "a list".to_owned(),
            _ if self.is_mapping() => "a mapping".to_owned(),
            Self::OneOf(shapes) => {
                let supported = shapes
                    .iter()
                    .filter(|shape| !matches!(shape, Self::Later(_)));
                supported
                    .map(Self::expected)
                    .collect::<Vec<_>>()
                    .join(" or ")
            }
            _ => "nothing".to_owned(),
        }
    }
}

/// What to write instead, where that can be told.
fn remedy(shape: &Shape, path: &str, node: &Node) -> Option<String> {
    match (shape, &node.value) {
        (Shape::List(_), Value::Scalar { text, .. })
            if text.len() <= SHOWN_MAX && !text.contains('"') =>
        {
            let words: Vec<String> = text
                .split_whitespace()
                .map(|word| format!("\"{word}\""))
                .collect();
            Some(format!("write [{}]", words.join(", ")))
        }
        (Shape::Entries(_), Value::List(items)) => as_mapping(path, items),
        (Shape::List(_), Value::Map(_)) => Some("begin each item with `- `".to_owned()),
        (Shape::Text(form), _) if node.is_nothing() && form.takes_all() => {
            Some("give a value or remove the line; an empty text is `\"\"`".to_owned())
        }
        _ if node.is_nothing() => Some("give a value or remove the line".to_owned()),
        _ => None,
    }
}

/// `- A=b`, as other systems list variables, is `A: b`.
fn as_mapping(path: &str, items: &[Node]) -> Option<String> {
    if path.ends_with(".ports") {
        let ours = "the program listens on `$PORT`; `routes` leads to it from outside, and `needs` from other services; here `ports` names further ones: `{ admin: http }`";
        return Some(ours.to_owned());
    }
    let first = items.first()?.text()?;
    let pair = first.split_once('=');
    Some(
        match pair.filter(|_| first.len() <= SHOWN_MAX && !first.contains('"')) {
            Some((name, value)) => format!("write each as `{name}: \"{value}\"`"),
            None => "write each as `NAME: VALUE`".to_owned(),
        },
    )
}

pub(super) fn join(path: &str, key: &str) -> String {
    let key = cut(key);
    if path.is_empty() {
        key
    } else {
        format!("{path}.{key}")
    }
}

/// A text of the file in a message.
pub(super) fn shown(text: &str) -> String {
    format!("`{}`", cut(text))
}

fn cut(text: &str) -> String {
    let (text, more) = match text.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => (&text[..end], "…"),
        None => (text, ""),
    };
    let visible = |character: char| match character.is_control() {
        true => character.escape_debug().to_string(),
        false => character.to_string(),
    };
    let text: String = text.chars().map(visible).collect();
    text + more
}

/// `did you mean ...?` for the known name nearest to `text`, if one is near.
pub(super) fn nearest<'name>(
    text: &str,
    known: impl Iterator<Item = &'name str>,
) -> Option<String> {
    if text.len() > SHOWN_MAX {
        return None;
    }
    let distance = |name: &'name str| (strsim::damerau_levenshtein(text, name), name);
    let (distance, name) = known.map(distance).min()?;
    let near = distance <= (text.chars().count() / 3).max(1);
    near.then(|| format!("did you mean `{name}`?"))
}

/// All known names, for where none is near.
pub(super) fn listed(known: &[&str]) -> Option<String> {
    let quoted: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
    (1..=24)
        .contains(&known.len())
        .then(|| format!("known: {}", quoted.join(", ")))
}
