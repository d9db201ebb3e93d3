//! What is said of a command line that is not understood, beyond what clap says: words of other systems, and usage without what only the environment
//! set.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// The error, with the tip and the usage that help.
pub fn explained(mut error: clap::Error, mut root: clap::Command, words: &[String]) -> clap::Error {
    let tip = tip(&error, words).map(str::to_owned);
    if let Some(tip) = tip.or_else(|| tip_on_argument(&error, words)) {
        error.remove(ContextKind::SuggestedSubcommand);
        let tips = ContextValue::StyledStrs(vec![tip.into()]);
        error.insert(ContextKind::Suggested, tips);
    }
    // These list all that is set, by the environment as well, as though it had to be.
    let lists_what_is_set = [
        ErrorKind::MissingRequiredArgument,
        ErrorKind::ArgumentConflict,
    ];
    if lists_what_is_set.contains(&error.kind()) {
        root.build();
        let usage = meant(&mut root, words).render_usage();
        error.insert(ContextKind::Usage, ContextValue::StyledStr(usage));
    }
    error
}

fn tip(error: &clap::Error, words: &[String]) -> Option<&'static str> {
    if error.kind() != ErrorKind::InvalidSubcommand {
        return None;
    }
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else {
        return None;
    };
    let first = words.iter().find(|word| !word.starts_with('-'));
    our_word(word).filter(|_| first == Some(word))
}

/// For who gives a word where it is taken elsewhere.
fn tip_on_argument(error: &clap::Error, words: &[String]) -> Option<String> {
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    let command = words.first()?.as_str();
    match command {
        _ if word.starts_with('-') => None,
        "exec" | "run" => Some(format!(
            "the command comes after `--`: `mainland {command} ... -- {word} ...`"
        )),
        "rollback" => Some(format!("a release is named by `--to {word}`")),
        "status" => Some(format!("`mainland explain {word}` is of one alone")),
        "logs" => Some("it takes one name, or none for all".to_owned()),
        _ => None,
    }
}

/// The command that the words lead to.
fn meant<'c>(command: &'c mut clap::Command, words: &[String]) -> &'c mut clap::Command {
    let at = words
        .iter()
        .position(|word| command.find_subcommand(word).is_some());
    match at {
        Some(at) => {
            let inner = command.find_subcommand_mut(&words[at]);
            meant(inner.expect("it was found just now"), &words[at + 1..])
        }
        None => command,
    }
}

/// What to say here for a verb of Docker, Kubernetes, Nomad, Fly, Heroku or Terraform.
fn our_word(verb: &str) -> Option<&'static str> {
    Some(match verb {
        "stop" => {
            "`mainland scale SERVICE 0` stops a service, `mainland delete scale SERVICE` starts it again; `mainland down` ends all"
        }
        "top" | "stats" | "metrics" => {
            "there is none: `mainland nodes` shows what of each machine is given out, `mainland ps` what runs where"
        }
        "cp" => {
            "there is none: `files` in the manifest brings files in, `mainland exec SERVICE -- cat FILE > FILE` out"
        }
        "describe" | "inspect" => {
            "`mainland explain NAME` says why it is as it is, `mainland get KIND NAME` how it is declared"
        }
        "plan" | "preview" => "it is `mainland diff` here",
        "validate" | "lint" | "config" => "it is `mainland check` here",
        "destroy" => {
            "`mainland delete --all` removes a project, `mainland down --delete-data` the cloud on this machine"
        }
        "rm" | "remove" => "it is `mainland delete KIND NAME` here",
        "ls" | "list" => {
            "`mainland ps` lists instances, `mainland status` services and routes, `mainland nodes` machines"
        }
        "drain" => {
            "there is none: after `mainland cordon NODE`, `mainland restart SERVICE` moves what has no volume there; `mainland leave NODE` removes it"
        }
        "login" | "auth" => {
            "there is none: commands show the token that the server here left for its owner, or the one in MAINLAND_TOKEN; `mainland whoami` says whose it is"
        }
        "init" | "create" | "launch" => {
            "there is none: write a mainland.yaml (`mainland schema` helps editors with it), then `mainland up`"
        }
        "build" | "push" | "pull" => {
            "there is none: `mainland apply` uploads what `run` and `files` name"
        }
        "ssh" | "attach" | "shell" | "console" => {
            "`mainland exec INSTANCE -- sh` runs beside an instance, `mainland run --in SERVICE -- sh` beside them all"
        }
        "port-forward" | "forward" | "tunnel" | "port" => "it is `mainland connect SERVICE` here",
        "tail" | "log" => "it is `mainland logs` here",
        "history" => "it is `mainland releases SERVICE` here",
        "undo" => "it is `mainland rollback SERVICE` here",
        "kill" => {
            "`mainland restart SERVICE` starts its copies anew, `mainland chaos kill NODE` kills a whole node"
        }
        "config-set" | "env" | "vars" => {
            "variables stand in the manifest's `env`, what is secret is set by `mainland secret set NAME`"
        }
        "info" => "it is `mainland status` here",
        "machines" | "machine" | "node" => "it is `mainland nodes` here",
        "upgrade" | "update" => "it is `mainland apply`, or `mainland deploy SERVICE`, here",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cli;
    use clap::{CommandFactory, Parser};

    fn said(line: &str) -> String {
        let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
        let error = Cli::try_parse_from(&words).unwrap_err();
        explained(error, Cli::command(), &words[1..]).to_string()
    }

    #[test]
    fn verbs_of_others_lead_to_ours() {
        for (line, tip) in [
            ("mainland stop web", "`mainland scale SERVICE 0`"),
            ("mainland plan", "it is `mainland diff` here"),
            ("mainland top", "there is none"),
            ("mainland destroy", "`mainland delete --all`"),
        ] {
            let said = said(line);
            assert!(said.contains(tip), "{line}: {said}");
            assert!(!said.contains("similar"), "{line}: {said}");
        }
        // What is nearly right is told by its likeness.
        assert!(said("mainland sttus").contains("'status'"));
        // Below a command of ours it is not the verb of a whole line.
        let below = said("mainland secret rm x");
        assert!(below.contains("unrecognized subcommand"), "{below}");
        assert!(!below.contains("mainland delete"), "{below}");
    }

    #[test]
    fn words_that_are_taken_elsewhere_are_told_where() {
        for (line, tip) in [
            ("mainland exec web ls", "`mainland exec ... -- ls ...`"),
            ("mainland run --in web ls", "`mainland run ... -- ls ...`"),
            ("mainland rollback web 2", "a release is named by `--to 2`"),
            ("mainland status web", "`mainland explain web`"),
            ("mainland logs web api", "it takes one name"),
        ] {
            let said = said(line);
            assert!(said.contains(tip), "{line}: {said}");
        }
    }

    #[test]
    fn tips_name_commands_that_there_are_and_verbs_that_are_not() {
        let verbs = include_str!("tips.rs").split("fn our_word").nth(1);
        let verbs = verbs.unwrap().split("#[cfg(test)]").next().unwrap();
        let command = Cli::command();
        for part in verbs.split("`mainland ").skip(1) {
            let word = part.split([' ', '`']).next().unwrap();
            assert!(command.find_subcommand(word).is_some(), "{word}");
        }
        for (at, word) in verbs.split('"').enumerate() {
            if at % 2 == 1 && !word.contains(' ') {
                assert!(command.find_subcommand(word).is_none(), "{word}");
            }
        }
    }

    #[test]
    fn usage_does_not_ask_for_what_the_environment_set() {
        // An option that was given counts like one of the environment.
        let said = said("mainland --data-dir /x restart");
        assert!(said.contains("<SERVICE>"), "{said}");
        let usage = said.lines().find(|line| line.starts_with("Usage:"));
        assert_eq!(usage, Some("Usage: mainland restart [OPTIONS] <SERVICE>"));
    }
}
