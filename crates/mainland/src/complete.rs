//! Completion of command lines: words and options by clap, names by asking the server that runs.
//!
//! A shell's script calls this program with [`VARIABLE`] set and the words of the line behind `--`. Whatever goes wrong, nothing is said, and
//! nothing is offered.

use std::ffi::{OsStr, OsString};

use api::wire::Kind;
use clap::FromArgMatches as _;
use clap_complete::CompleteEnv;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use clap_complete::env::Shells;
use experience::Globals;
use experience::names::{self, Names};

use crate::processes;

/// Bash's own script: clap's leaves a word in the pieces that readline makes of it.
const BASH: &str = include_str!("complete.bash");

/// Set by a shell's script, to the name of the shell.
pub const VARIABLE: &str = "MAINLAND_COMPLETE";

/// Answers a shell, where one asks; whether one did.
pub fn answered(command: Root) -> bool {
    // Nobody looks at what is wrong with a line that is not finished.
    let factory = move || naming(command, command(), &[], &words());
    let asked = CompleteEnv::with_factory(factory).var(VARIABLE);
    let here = std::env::current_dir().ok();
    asked
        .try_complete(std::env::args_os(), here.as_deref())
        .unwrap_or(true)
}

/// What a shell is to read, so that it asks.
///
/// # Errors
///
/// The shell is not known.
pub fn script(shell: &str) -> Result<String, std::io::Error> {
    let shells = Shells::builtins();
    let known = shells.completer(shell);
    if shell == "bash" {
        let program = format!("'{}'", program().replace('\'', r"'\''"));
        return Ok(BASH.replace("PROGRAM", &program));
    }
    let known =
        known.ok_or_else(|| std::io::Error::other(format!("no shell is called {shell}")))?;
    let mut script = Vec::new();
    known.write_registration(VARIABLE, "mainland", "mainland", &program(), &mut script)?;
    Ok(String::from_utf8_lossy(&script).into_owned())
}

/// As it was called: by its name, which the shell finds, or by a path, which holds from everywhere.
fn program() -> String {
    let called = std::env::args_os().next().map(std::path::PathBuf::from);
    let called = called.unwrap_or_else(|| "mainland".into());
    let path = match called.components().count() > 1 {
        true => std::path::absolute(&called).unwrap_or(called),
        false => called,
    };
    path.to_string_lossy().into_owned()
}

/// How the whole command line is made.
type Root = fn() -> clap::Command;

/// With names for the arguments that take one, and without what is hidden; `path` are the words that lead to the command, `words` those of the line.
fn naming(root: Root, command: clap::Command, path: &[&str], words: &[OsString]) -> clap::Command {
    // One by one they would change their order, and so their places.
    let command = command.mut_args(|argument| {
        let argument = unoffered(argument, words);
        match named(path, argument.get_id().as_str(), words) {
            Some(named) => argument.add(ArgValueCompleter::new(move |begun: &OsStr| {
                offered(root, named, begun)
            })),
            None => argument,
        }
    });
    command.mut_subcommands(|inner| {
        let name = inner.get_name().to_owned();
        naming(root, inner, &[path, &[name.as_str()]].concat(), words)
    })
}

/// An option that is hidden would be offered where nothing else fits what is begun: `--to` would become `--token`. Where the line has it, it is read
/// as what it is; elsewhere nothing that is typed begins its name.
fn unoffered(argument: clap::Arg, words: &[OsString]) -> clap::Arg {
    let Some(long) = argument.get_long().filter(|_| argument.is_hide_set()) else {
        return argument;
    };
    let option = format!("--{long}");
    let is_said = |word: &OsString| word.to_string_lossy().starts_with(&option);
    if words.iter().any(is_said) {
        return argument;
    }
    // This process answers once, and ends.
    let name: &'static str = format!("\u{7f}{long}").leak();
    argument.long(name)
}

/// What an argument of a command names.
fn named(path: &[&str], argument: &str, words: &[OsString]) -> Option<Names> {
    Some(match (path, argument) {
        (_, "project") => Names::Projects,
        (_, "node") => Names::Nodes,
        (_, "topic") => Names::Topics,
        (_, "database") => Names::Databases,
        (_, "service") | (["connect"], "target") | (["ps"], "name") => Names::Services,
        (["logs" | "exec" | "events"], "name") => Names::Instances,
        (["explain"], "subject") => Names::Subjects,
        (["secret", "set"], "name") => Names::Secrets,
        (["get" | "delete"], "name") => Names::Of(kind_in(words)),
        _ => return None,
    })
}

/// That which `get` or `delete` of this line is of.
fn kind_in(words: &[OsString]) -> Kind {
    let kinds = Kind::ALL.into_iter();
    let mut said = kinds.filter(|kind| words.iter().any(|word| word == kind.as_str()));
    said.next().unwrap_or(Kind::Services)
}

/// The words of the line that is to be completed, without the one that is begun.
fn words() -> Vec<OsString> {
    let mut words: Vec<_> = std::env::args_os()
        .skip_while(|word| word != "--")
        .skip(1)
        .collect();
    words.pop();
    words
}

fn offered(root: Root, names: Names, begun: &OsStr) -> Vec<CompletionCandidate> {
    let begun = begun.to_string_lossy();
    let found = asked(root, names, &words());
    let fitting = found.into_iter().filter(|name| name.starts_with(&*begun));
    fitting.map(CompletionCandidate::new).collect()
}

fn asked(root: Root, names: Names, words: &[OsString]) -> Vec<String> {
    let Some(globals) = globals(root, words) else {
        return Vec::new();
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.map_or_else(
        |_| Vec::new(),
        |runtime| runtime.block_on(names::of(&globals, names)),
    )
}

/// What the line says of where the server is, and what the environment does.
fn globals(root: Root, words: &[OsString]) -> Option<Globals> {
    let matches = root().ignore_errors(true).try_get_matches_from(words);
    let globals = Globals::from_arg_matches(&matches.ok()?).ok()?;
    Some(globals.proving(processes::proven))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::Cli;

    #[test]
    fn what_a_line_says_of_the_server_is_read_wherever_it_stands() {
        let line = |text: &str| -> Vec<OsString> { text.split(' ').map(OsString::from).collect() };
        for text in [
            "mainland -p shop logs",
            "mainland logs -p shop",
            "mainland logs --follow --project=shop --since 5m",
            "mainland exec -p shop web",
        ] {
            let globals = globals(Cli::command, &line(text)).unwrap();
            assert_eq!(globals.project.as_deref(), Some("shop"), "{text}");
        }
        let globals = globals(
            Cli::command,
            &line("mainland --api 127.0.0.1:1 rollback web --to"),
        );
        let globals = globals.unwrap();
        assert_eq!(globals.api_address().port(), 1);
        assert_eq!(kind_in(&line("mainland delete secrets")), Kind::Secrets);
    }

    #[test]
    fn options_that_are_hidden_are_not_offered_and_are_known_where_they_are_said() {
        let offered = |text: &str| -> Vec<String> {
            let line: Vec<_> = text.split(' ').map(OsString::from).collect();
            let words = &line[..line.len() - 1];
            let mut command = naming(Cli::command, Cli::command(), &[], words);
            let index = line.len() - 1;
            let offered =
                clap_complete::engine::complete(&mut command, line.clone(), index, None).unwrap();
            let values = offered.iter().map(|one| one.get_value());
            values
                .map(|value| value.to_string_lossy().into_owned())
                .collect()
        };
        let none: [&str; 0] = [];
        assert_eq!(offered("mainland delete routes --to"), none);
        assert_eq!(offered("mainland apply --auth"), none);
        assert_eq!(offered("mainland rollback web --to"), ["--to"]);
        assert_eq!(offered("mainland apply --ti"), ["--timeout"]);
        for said in ["--token t", "--token=t"] {
            let line = format!("mainland {said} apply --ti");
            assert_eq!(offered(&line), ["--timeout"], "{said}");
        }
    }

    /// Bash takes a word apart, and replaces the last piece of it alone.
    #[test]
    fn bash_puts_what_is_offered_behind_what_stands_there() {
        let folder = tempfile::tempdir().unwrap();
        let (program, asked) = (folder.path().join("program"), folder.path().join("asked"));
        const PROGRAM: &str = r#"shift; printf '<%s>' "$_CLAP_COMPLETE_INDEX" "$@" > "$ASKED"; printf '%s' "$OFFERS""#;
        std::fs::write(&program, PROGRAM).unwrap();
        let script = BASH.replace("PROGRAM", &format!("sh '{}'", program.display()));
        const ASK: &str = r#"
eval "$SCRIPT"
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_mainland_complete mainland "$BEGUN" ''
printf '%s\n' "${COMPREPLY[@]}"
"#;
        // `|`: where the cursor stands, if not at the end.
        let asked_and_offered = |pieces: &[&str], line: &str, begun: &str, offers: &str| {
            let point = line.find('|').unwrap_or(line.len());
            let bash = std::process::Command::new("bash")
                .args(["--norc", "--noprofile", "-c", ASK, "bash"])
                .args(pieces)
                .envs([("SCRIPT", &*script), ("BEGUN", begun), ("OFFERS", offers)])
                .env("COMP_LINE", line.replace('|', ""))
                .env("COMP_POINT", point.to_string())
                .env("ASKED", &asked)
                .output()
                .unwrap();
            let offered = String::from_utf8(bash.stdout).unwrap();
            let asked = std::fs::read_to_string(&asked).unwrap();
            (asked, offered.trim_end().to_owned())
        };
        let route = "a.localhost/b:c@d=e";
        for (pieces, line, begun, offers, asked, offered) in [
            (
                &["mainland", "logs", "w"][..],
                "mainland logs w",
                "w",
                "web\nworker",
                "<2><mainland><logs><w>",
                "web\nworker",
            ),
            (
                &["mainland", "logs", ""],
                "mainland  logs ",
                "",
                "",
                "<2><mainland><logs><>",
                "",
            ),
            (
                &["mainland", "delete", "routes", "a.localhost/b", ":"],
                "mainland delete routes a.localhost/b:",
                "",
                route,
                "<3><mainland><delete><routes><a.localhost/b:>",
                "c@d=e",
            ),
            (
                &[
                    "mainland",
                    "delete",
                    "routes",
                    "a.localhost/b",
                    ":",
                    "c",
                    "@",
                    "d",
                    "=",
                    "e",
                ],
                "mainland delete routes a.localhost/b:c@d=e",
                "e",
                route,
                "<3><mainland><delete><routes><a.localhost/b:c@d=e>",
                "e",
            ),
            (
                &["mainland", "--project", "=", "sh", "logs", "w"],
                "mainland --project=sh logs w",
                "w",
                "web",
                "<3><mainland><--project=sh><logs><w>",
                "web",
            ),
            // What is quoted is asked for without its quotes, and stays in them.
            (
                &["mainland", "logs", "'w"],
                "mainland logs 'w",
                "w",
                "web",
                "<2><mainland><logs><w>",
                "web",
            ),
            // The cursor stands within it.
            (
                &["mainland", "--project", "=", "shop", "logs"],
                "mainland --project=shop lo|gs",
                "lo",
                "logs",
                "<2><mainland><--project=shop><lo>",
                "logs",
            ),
        ] {
            let expected = (asked.to_owned(), offered.to_owned());
            let found = asked_and_offered(pieces, line, begun, offers);
            assert_eq!(found, expected, "{line}");
        }
    }
}
