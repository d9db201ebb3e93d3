//! What becomes of one statement that is loaded. Pure.

use std::collections::BTreeSet;

use model::state::extensions;

/// What the database has that a statement may name.
#[derive(Debug, Default, Clone)]
pub struct Here {
    pub roles: BTreeSet<String>,
    /// Extensions that are made already, and not the owner's.
    pub extensions: BTreeSet<String>,
    /// Extensions that an owner may make.
    pub trusted: BTreeSet<String>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Keep,
    /// Its rows follow.
    Rows,
    /// What, for a summary (empty: nobody misses it), and whom it names.
    LeaveOut(&'static str, Vec<String>),
    Refuse(String),
}

const OWNER: &str = "OWNER TO: all that is loaded belongs to the owner of the database";
const GRANT: &str = "GRANT or REVOKE that names a role that is not here";
const ROLE: &str = "SET ROLE or SET SESSION AUTHORIZATION";
const SERVER: &str =
    "statement about roles, databases or tablespaces, which are not the database's";

const EXTENSION: &str = "statement about extensions that are refused, with what they bring";
const SUPERUSER: &str = "statement that only a superuser may make: event triggers, subscriptions, publications of all tables, settings of the server";

/// Names that mean whoever it is.
const ANYBODY: [&str; 4] = ["public", "current_user", "current_role", "session_user"];

/// `text`: the statement without comments, and without what is in texts; `objects`: it stands among a dump's large objects.
pub fn judge(text: &str, objects: bool, here: &Here) -> Verdict {
    let words: Vec<&str> = text.trim_end_matches(';').split_whitespace().collect();
    let upper: Vec<String> = words.iter().map(|word| word.to_ascii_uppercase()).collect();
    let upper: Vec<&str> = upper.iter().map(String::as_str).collect();
    match upper.as_slice() {
        ["BEGIN" | "COMMIT"] if objects => Verdict::LeaveOut("", Vec::new()),
        ["COPY", rest @ ..] => match copies(rest) {
            Some("STDIN") => Verdict::Rows,
            Some("PROGRAM") => Verdict::Refuse("COPY … FROM PROGRAM runs a program of the database's machine: it is refused".to_owned()),
            _ => Verdict::Keep,
        },
        ["ALTER", .., "OWNER", "TO", _] => Verdict::LeaveOut(OWNER, vec![role(words.last())]),
        ["GRANT" | "REVOKE", ..] | ["ALTER", "DEFAULT", "PRIVILEGES", ..] => rights(&words, &upper, &here.roles),
        ["SET", rest @ ..] if makes_backslashes_escape(rest) => {
            Verdict::Refuse("standard_conforming_strings = off is not supported: dump with it on, as PostgreSQL 9.1 and later do".to_owned())
        }
        ["SET", "ROLE", ..] | ["SET", "SESSION", "AUTHORIZATION", ..] | ["RESET", "ROLE"] | ["RESET", "SESSION", "AUTHORIZATION"] => {
            Verdict::LeaveOut(ROLE, Vec::new())
        }
        ["SET", "DEFAULT_TABLESPACE", _, value] if !matches!(*value, "''" | "DEFAULT") => {
            Verdict::LeaveOut(SERVER, Vec::new())
        }
        ["CREATE" | "ALTER" | "DROP", "ROLE" | "USER" | "GROUP" | "DATABASE" | "TABLESPACE", what, ..] if *what != "MAPPING" => {
            Verdict::LeaveOut(SERVER, Vec::new())
        }
        ["COMMENT", "ON", "ROLE" | "DATABASE" | "TABLESPACE", ..] => Verdict::LeaveOut(SERVER, Vec::new()),
        // It belongs to who made it.
        ["COMMENT", "ON", "EXTENSION", ..] => Verdict::LeaveOut("", Vec::new()),
        [verb @ ("CREATE" | "ALTER" | "DROP"), "EXTENSION", rest @ ..] => extension(verb, &words[2..], rest, here),
        ["ALTER", "SYSTEM", ..] | ["CREATE" | "ALTER" | "DROP", "EVENT", "TRIGGER", ..] | ["COMMENT", "ON", "EVENT", "TRIGGER", ..] => {
            Verdict::LeaveOut(SUPERUSER, Vec::new())
        }
        ["CREATE" | "ALTER" | "DROP", "SUBSCRIPTION", ..] | ["COMMENT", "ON", "SUBSCRIPTION", ..] => Verdict::LeaveOut(SUPERUSER, Vec::new()),
        ["CREATE", "PUBLICATION", _, "FOR", "ALL", "TABLES", ..] | ["CREATE", "PUBLICATION", _, "FOR", "TABLES", "IN", "SCHEMA", ..] => {
            Verdict::LeaveOut(SUPERUSER, Vec::new())
        }
        _ => Verdict::Keep,
    }
}

/// One that is there stays; one that the owner may not make is declared first.
fn extension(verb: &str, words: &[&str], upper: &[&str], here: &Here) -> Verdict {
    let at = match upper {
        ["IF", "NOT", "EXISTS", ..] => 3,
        ["IF", "EXISTS", ..] => 2,
        _ => 0,
    };
    let name = role(words.get(at));
    if here.extensions.contains(&name) {
        return Verdict::LeaveOut("", Vec::new());
    }
    if extensions::is_refused(&name) {
        return Verdict::LeaveOut(EXTENSION, vec![name]);
    }
    match verb == "CREATE" && !here.trusted.contains(&name) {
        false => Verdict::Keep,
        true => Verdict::Refuse(format!(
            "the extension `{name}` needs a superuser: declare it for this database, `extensions: [{name}]`, apply, and load again"
        )),
    }
}

/// Whether texts would then end elsewhere than we take them to. Neither `=` nor a quoted name needs blanks around it.
fn makes_backslashes_escape(words: &[&str]) -> bool {
    let spaced = words.join(" ").replace('=', " = ").replace('"', " ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let words = match words.as_slice() {
        ["SESSION" | "LOCAL", rest @ ..] => rest,
        all => all,
    };
    let [
        "STANDARD_CONFORMING_STRINGS" | "\"STANDARD_CONFORMING_STRINGS\"",
        _,
        value @ ..,
    ] = words
    else {
        return false;
    };
    !matches!(value, ["ON" | "TRUE" | "1" | "DEFAULT"])
}

/// From where a COPY has its rows: outside of parentheses, the word after FROM.
fn copies<'a>(words: &[&'a str]) -> Option<&'a str> {
    let mut depth = 0_i32;
    for (index, word) in words.iter().enumerate() {
        if depth == 0 && *word == "FROM" {
            return words.get(index + 1)?.split('(').next();
        }
        let signed = |byte: u8| i32::from(byte == b'(') - i32::from(byte == b')');
        depth += word.bytes().map(signed).sum::<i32>();
        // `t(a)FROM` is one word to us.
        if depth == 0 && word.ends_with(")FROM") {
            return words.get(index + 1)?.split('(').next();
        }
    }
    None
}

/// Kept where all who are named are known.
fn rights(words: &[&str], upper: &[&str], roles: &BTreeSet<String>) -> Verdict {
    let preposition = |word: &&str| matches!(*word, "TO" | "FROM");
    let from = upper
        .iter()
        .rposition(preposition)
        .map_or(words.len(), |at| at + 1);
    let mut named: Vec<String> = Vec::new();
    for (word, upper) in words[from..].iter().zip(&upper[from..]) {
        match *upper {
            "WITH" | "GRANTED" | "CASCADE" | "RESTRICT" => break,
            "GROUP" => {}
            _ => named.extend(
                word.split(',')
                    .filter(|name| !name.is_empty())
                    .map(|name| role(Some(&name))),
            ),
        }
    }
    // ALTER DEFAULT PRIVILEGES FOR ROLE x
    if let Some(at) = upper.iter().position(|word| *word == "FOR") {
        named.extend(words.get(at + 2).map(|name| role(Some(name))));
    }
    named.retain(|name| {
        !ANYBODY.contains(&name.to_ascii_lowercase().as_str()) && !roles.contains(name)
    });
    match named.is_empty() {
        true => Verdict::Keep,
        false => Verdict::LeaveOut(GRANT, named),
    }
}

fn role(word: Option<&&str>) -> String {
    let word = word.copied().unwrap_or_default();
    match word
        .strip_prefix('"')
        .and_then(|word| word.strip_suffix('"'))
    {
        Some(quoted) => quoted.replace("\"\"", "\""),
        None => word.to_ascii_lowercase(),
    }
}
