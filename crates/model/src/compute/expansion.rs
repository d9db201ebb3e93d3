//! `$NAME` and `${NAME}` in `run` and `env`.

/// A part of a text that is filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'text> {
    /// Stays as it is. Of `$$` one dollar sign.
    Text(&'text str),
    /// Stands for a variable's value; without one it stays as `written`.
    Variable {
        name: &'text str,
        written: &'text str,
    },
}

/// The parts of a text, in its order.
///
/// An unknown name stays as it is, as in Kubernetes: in `sh -c 'for i in 1 2; do echo $i; done'` it is the shell's.
pub fn pieces(text: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (piece, length) = match rest.find('$') {
            _ if rest.is_empty() => return None,
            Some(0) => after_dollar(rest),
            at => {
                let length = at.unwrap_or(rest.len());
                (Piece::Text(&rest[..length]), length)
            }
        };
        rest = &rest[length..];
        Some(piece)
    })
}

/// The part that a `$` begins, and how many bytes of `text` it takes.
fn after_dollar(text: &str) -> (Piece<'_>, usize) {
    let after = &text[1..];
    if after.starts_with('$') {
        return (Piece::Text("$"), 2);
    }
    let (name, length) = match after.strip_prefix('{') {
        Some(braced) => match braced.find('}') {
            Some(end) => (&braced[..end], end + 3),
            None => return (Piece::Text("$"), 1),
        },
        None => {
            let name = &after[..name_length(after)];
            (name, name.len() + 1)
        }
    };
    let written = &text[..length];
    (Piece::Variable { name, written }, length)
}

fn name_length(text: &str) -> usize {
    if text.starts_with(|first: char| first.is_ascii_digit()) {
        return 0;
    }
    text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .unwrap_or(text.len())
}
