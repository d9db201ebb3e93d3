//! Long functions and files: how many a crate has, and how long the longest is, stands in `xtask/ratchet.toml` and only goes down.
//! A crate that does not stand there has none. Tests are not counted: a table is long.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};

use super::Violation;
use super::workspace::{Member, Source, Workspace, test_items};

/// Lines from `fn` to the closing brace.
const FUNCTION_LINES: usize = 60;
/// Lines of a file without its tests.
const FILE_LINES: usize = 500;

/// What is beyond the limits, by crate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ratchet(BTreeMap<String, Excess>);

/// What of a crate is beyond the limits. All zero: nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Excess {
    functions: usize,
    longest_function: usize,
    files: usize,
    longest_file: usize,
}

const FIELDS: [&str; 4] = ["functions", "longest_function", "files", "longest_file"];

impl Excess {
    fn numbers(&self) -> [usize; 4] {
        [
            self.functions,
            self.longest_function,
            self.files,
            self.longest_file,
        ]
    }

    fn of_numbers(numbers: [usize; 4]) -> Self {
        let [functions, longest_function, files, longest_file] = numbers;
        Self {
            functions,
            longest_function,
            files,
            longest_file,
        }
    }

    fn measure(member: &Member) -> Self {
        let mut excess = Self::default();
        for long in too_long(member) {
            let (count, longest) = match long.function {
                Some(_) => (&mut excess.functions, &mut excess.longest_function),
                None => (&mut excess.files, &mut excess.longest_file),
            };
            *count += 1;
            *longest = long.lines.max(*longest);
        }
        excess
    }

    fn exceeds(&self, recorded: &Self) -> bool {
        let mut pairs = self.numbers().into_iter().zip(recorded.numbers());
        pairs.any(|(actual, recorded)| actual > recorded)
    }

    fn least(&self, other: &Self) -> Self {
        let mut numbers = self.numbers();
        for (number, other) in numbers.iter_mut().zip(other.numbers()) {
            *number = other.min(*number);
        }
        Self::of_numbers(numbers)
    }
}

impl Ratchet {
    pub(crate) fn measure(workspace: &Workspace) -> Self {
        let members = workspace.members.iter();
        let measured = members.map(|member| (member.name.clone(), Excess::measure(member)));
        Self(
            measured
                .filter(|(_, excess)| *excess != Excess::default())
                .collect(),
        )
    }

    pub(crate) fn parse(text: &str) -> Result<Self> {
        let table: toml::Table = text.parse()?;
        let mut crates = BTreeMap::new();
        for (name, value) in table {
            let mut numbers = [0; 4];
            for (number, field) in numbers.iter_mut().zip(FIELDS) {
                let value = value.get(field).and_then(toml::Value::as_integer);
                *number = value
                    .with_context(|| format!("{name}: no {field}"))?
                    .try_into()?;
            }
            crates.insert(name, Excess::of_numbers(numbers));
        }
        Ok(Self(crates))
    }

    pub(crate) fn to_text(&self) -> String {
        let mut text = format!(
            "# Functions of more than {FUNCTION_LINES} lines and files of more than {FILE_LINES}, tests not counted.\n\
             # Only goes down: `cargo xtask tidy --update`.\n"
        );
        for (name, excess) in &self.0 {
            let _ = write!(text, "\n[{name}]\n");
            for (field, number) in FIELDS.iter().zip(excess.numbers()) {
                let _ = writeln!(text, "{field} = {number}");
            }
        }
        text
    }

    /// What to record now: where something was recorded, the lesser. `None`: nothing was, so that all is taken as it is.
    pub(crate) fn tighten(&self, recorded: Option<&Self>) -> Self {
        let Some(recorded) = recorded else {
            return self.clone();
        };
        let lesser = recorded.0.iter().map(|(name, recorded)| {
            let actual = self.0.get(name).copied().unwrap_or_default();
            (name.clone(), actual.least(recorded))
        });
        Self(
            lesser
                .filter(|(_, excess)| *excess != Excess::default())
                .collect(),
        )
    }

    /// Whether something recorded has become less.
    pub(crate) fn is_below(&self, recorded: &Self) -> bool {
        self.tighten(Some(recorded)) != *recorded
    }

    /// What is longer than recorded. Of a crate that exceeds, all that is too long is named: which is new, the ratchet can't know.
    pub(crate) fn above(&self, recorded: &Self, workspace: &Workspace) -> Vec<Violation> {
        let members = workspace.members.iter();
        let exceeding = members.filter(|member| {
            let recorded = recorded.0.get(&member.name).copied().unwrap_or_default();
            let actual = self.0.get(&member.name).copied().unwrap_or_default();
            actual.exceeds(&recorded)
        });
        exceeding
            .flat_map(too_long)
            .map(|long| long.violation())
            .collect()
    }
}

/// A function or file that is too long.
struct Long {
    path: String,
    line: usize,
    /// `None`: the file.
    function: Option<String>,
    lines: usize,
}

impl Long {
    fn violation(&self) -> Violation {
        let (what, most) = match &self.function {
            Some(name) => (format!("`{name}`"), FUNCTION_LINES),
            None => ("the file without its tests".to_owned(), FILE_LINES),
        };
        let message = format!(
            "{what} has {} lines, more than {most} and than {}",
            self.lines,
            super::RATCHET
        );
        Violation::new(format!("{}:{}", self.path, self.line), message)
    }
}

fn too_long(member: &Member) -> Vec<Long> {
    let sources = member.sources.iter().filter(|source| !source.is_test);
    sources.flat_map(too_long_in).collect()
}

fn too_long_in(source: &Source) -> Vec<Long> {
    let mut lengths = Lengths::default();
    lengths.visit_file(&source.syntax);
    let mut long: Vec<Long> = lengths
        .functions
        .into_iter()
        .filter(|(_, line, lines)| *lines > FUNCTION_LINES && !source.is_test_line(*line))
        .map(|(name, line, lines)| Long {
            path: source.path.clone(),
            line,
            function: Some(name),
            lines,
        })
        .collect();
    let lines = source.text.lines().count() - test_lines(source);
    if lines > FILE_LINES {
        long.push(Long {
            path: source.path.clone(),
            line: 1,
            function: None,
            lines,
        });
    }
    long
}

fn test_lines(source: &Source) -> usize {
    let items = test_items(&source.syntax).into_iter();
    items.map(|lines| lines.count()).sum()
}

#[derive(Default)]
struct Lengths {
    /// Name, line and lines.
    functions: Vec<(String, usize, usize)>,
}

impl Lengths {
    fn add(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let first = signature.span().start().line;
        let last = block.span().end().line;
        self.functions
            .push((signature.ident.to_string(), first, last + 1 - first));
    }
}

impl<'ast> Visit<'ast> for Lengths {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.add(&function.sig, &function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.add(&function.sig, &function.block);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast syn::TraitItemFn) {
        if let Some(block) = &function.default {
            self.add(&function.sig, block);
        }
        visit::visit_trait_item_fn(self, function);
    }
}

#[cfg(test)]
mod tests {
    use super::super::workspace::testing::house;
    use super::*;

    /// A function of so many lines in all.
    fn function(lines: usize) -> String {
        format!("fn long() {{\n{}}}\n", "    g();\n".repeat(lines - 2))
    }

    fn with(text: &str) -> Workspace {
        house(&[("crates/model/src/long.rs", text)])
    }

    fn judge(text: &str, recorded: &str) -> Vec<String> {
        let house = with(text);
        let recorded = Ratchet::parse(recorded).unwrap();
        let found = Ratchet::measure(&house)
            .above(&recorded, &house)
            .into_iter();
        found
            .map(|violation| format!("{}: {}", violation.place, violation.message))
            .collect()
    }

    #[test]
    fn a_function_may_have_sixty_lines() {
        assert_eq!(judge(&function(60), ""), [""; 0]);
        let found = judge(&format!("// One.\n\n{}", function(61)), "");
        let expected = "crates/model/src/long.rs:3: `long` has 61 lines, more than 60 and than xtask/ratchet.toml";
        assert_eq!(found, [expected]);
    }

    #[test]
    fn methods_and_defaults_of_traits_count() {
        for around in ["impl T", "trait T", "mod t"] {
            let found = judge(&format!("{around} {{\n{}}}\n", function(61)), "");
            assert_eq!(found.len(), 1, "{around}");
        }
    }

    #[test]
    fn a_file_may_have_five_hundred_lines() {
        let constant = "const A: u8 = 1;\n";
        assert_eq!(judge(&constant.repeat(500), ""), [""; 0]);
        assert_eq!(judge(&constant.repeat(501), "").len(), 1);
    }

    #[test]
    fn tests_do_not_count() {
        let test = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", function(700));
        assert_eq!(judge(&format!("{}{test}", function(10)), ""), [""; 0]);
        assert_eq!(judge(&format!("#[test]\n{}", function(61)), ""), [""; 0]);
        let not_quite = format!("#[cfg(not(test))]\nmod real {{\n{}}}\n", function(61));
        assert_eq!(judge(&not_quite, "").len(), 1);
    }

    #[test]
    fn what_is_recorded_may_stay_and_not_grow() {
        let recorded =
            "[model]\nfunctions = 1\nlongest_function = 70\nfiles = 0\nlongest_file = 0\n";
        assert_eq!(judge(&function(70), recorded), [""; 0]);
        assert_eq!(judge(&function(71), recorded).len(), 1);
        assert_eq!(judge(&function(61).repeat(2), recorded).len(), 2);
    }

    #[test]
    fn the_ratchet_goes_down_only() {
        let actual = |lines| Ratchet::measure(&with(&function(lines)));
        let recorded = actual(70);
        assert_eq!(Ratchet::parse(&recorded.to_text()).unwrap(), recorded);
        assert_eq!(actual(80).tighten(Some(&recorded)), recorded);
        assert_eq!(actual(65).tighten(Some(&recorded)), actual(65));
        assert_eq!(actual(60).tighten(Some(&recorded)), Ratchet::default());
        assert_eq!(
            actual(80).tighten(Some(&Ratchet::default())),
            Ratchet::default()
        );
        assert_eq!(actual(80).tighten(None), actual(80));
        assert!(actual(65).is_below(&recorded) && !actual(80).is_below(&recorded));
    }
}
