//! `check`, `diff`, `apply`, `deploy`, `delete`: manifest in, consequences out.
//!
//! | module | what it does |
//! |---|---|
//! | here | `diff`, `apply`, `delete`, and what changes mean, for people |
//! | `manifest` | finds and reads the file |
//! | `request` | makes a request of it: artifacts uploaded, secret files read |
//! | `check` | `check` |
//! | `undeclared` | what goes on serving though the manifest no longer names it |
//! | `rolling` | `deploy`: upload, release, roll, and say how it went |
//! | `lock` | one deploy at a time in a project |

mod check;
mod lock;
mod manifest;
mod request;
mod rolling;
mod undeclared;
mod values;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use api::client::Client;
use api::wire::{self, Action, Kind};
use model::ids::{ProjectName, ReleaseNumber, ResourceName};
use model::manifest::Manifest;

use crate::failure::{Failure, QUESTIONABLE};
use crate::operate::Waiting;
use crate::output::Output;
use crate::{Globals, assent, idempotency_key, notice, progress};
use manifest::read_meant;
use request::request;

pub use check::Check;
pub use manifest::{MANIFEST, find_manifest, project_of, read};
pub use rolling::Deploy;

/// Longer than a deploy is held whose client has died.
const DEPLOY_PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

/// Which manifest.
#[derive(Debug, Clone, clap::Args)]
pub struct Which {
    /// The manifest, or the folder that holds it; `-` is standard input
    #[arg(short, long, value_name = "FILE", default_value = MANIFEST)]
    file: PathBuf,
    /// The manifest, or the folder that holds it: the same as -f
    #[arg(value_name = "PATH", conflicts_with = "file")]
    path: Option<PathBuf>,
}

impl Which {
    /// The manifest itself, where a folder was named.
    fn file(&self) -> Result<PathBuf, Failure> {
        let path = self.path.as_ref().unwrap_or(&self.file).clone();
        Ok(find_manifest(Some(path.clone()))?.unwrap_or(path))
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit code 0: nothing would change, or what would is listed.\n\n\
                  Examples:\n  mainland diff --env staging\n  mainland diff -o json | jq '.changes[] | select(.action != \"keep\")'"
)]
pub struct Diff {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    removal: Removal,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "With --wait it ends early where something can't become ready until a person changes it: that is said after some seconds, with \
                  the reason. Exit code 3: the server went away, and it is not known what became of it.\n\n\
                  Examples:\n  mainland apply -f mainland.yaml --wait\n  envsubst < mainland.yaml | mainland apply -f -"
)]
pub struct ApplyFile {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    removal: Removal,
    /// Only say what would change
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    waiting: Waiting,
    /// What `releases` shows of it, such as the commit: one line, at most 500 characters
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Assent to what would otherwise be asked
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Clone, clap::Args)]
struct Removal {
    /// Also remove what the project has and the manifest does not name
    #[arg(long)]
    prune: bool,
    /// With --prune: delete the data of what is removed
    #[arg(long, requires = "prune")]
    delete_data: bool,
}

impl Removal {
    /// A warning of what is in force and not declared, where that stays.
    async fn left(&self, client: &Client, manifest: &Manifest, aim: &str) -> Option<String> {
        match self.prune {
            true => None,
            false => undeclared::warning(client, manifest, aim).await,
        }
    }
}

/// What a command that is shown must have besides, so that it acts on this manifest: [`Globals::aim`], and the file where it is another than the one
/// that is taken without it.
fn aim_at(file: &Path, globals: &Globals) -> String {
    let named = match file == Path::new(MANIFEST) {
        true => String::new(),
        false => format!(" -f {}", as_a_word(&file.to_string_lossy())),
    };
    named + &globals.aim()
}

/// As a shell takes it for one word.
fn as_a_word(text: &str) -> String {
    let is_plain = |letter: char| letter.is_alphanumeric() || "/._-+:@%,=".contains(letter);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "It asks before it takes away a service that others need or that leaves a volume behind. With nobody there to \
                  be asked, what is needed is kept, with exit code 2, unless -y says otherwise.\n\n\
                  Examples:\n  mainland delete services checkout\n  mainland delete --all -y"
)]
pub struct Delete {
    /// services, routes, secrets or scales
    #[arg(value_parser = parse_deletable, required_unless_present = "all")]
    kind: Option<Kind>,
    /// As `mainland get KIND` lists it
    #[arg(required_unless_present = "all", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    name: Option<String>,
    /// The whole project
    #[arg(long, conflicts_with_all = ["kind", "name"])]
    all: bool,
    /// Delete the data of its volumes as well
    #[arg(long)]
    delete_data: bool,
    /// Assent
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    output: Output,
}

/// `services`, or `service`.
pub fn parse_kind(text: &str) -> Result<Kind, String> {
    let found = Kind::ALL
        .into_iter()
        .find(|kind| kind.as_str() == text || kind.as_str().trim_end_matches('s') == text);
    found.ok_or_else(|| unknown_kind(text, &Kind::ALL))
}

/// Those that are deleted by name.
const DELETABLE: [Kind; 4] = [Kind::Services, Kind::Routes, Kind::Secrets, Kind::Scales];

fn parse_deletable(text: &str) -> Result<Kind, String> {
    match parse_kind(text) {
        Ok(kind) if DELETABLE.contains(&kind) => Ok(kind),
        Ok(kind) => Err(format!(
            "{} follow from what is applied, and are not deleted by themselves",
            kind.as_str()
        )),
        Err(_) => Err(unknown_kind(text, &DELETABLE)),
    }
}

fn unknown_kind(text: &str, known: &[Kind]) -> String {
    let is_service = ["database", "topic"]
        .into_iter()
        .find(|word| text.trim_end_matches('s') == *word);
    if let Some(word) = is_service {
        return format!("a {word} is a service: say `services`");
    }
    let known: Vec<_> = known.iter().map(|kind| kind.as_str()).collect();
    format!("kinds are: {}", known.join(", "))
}

/// What is asked of who deletes a whole project, or data.
fn question(what: Option<&str>, project: &ProjectName, delete_data: bool) -> String {
    match (what, delete_data) {
        (Some(what), true) => {
            format!("This removes {what} and its data, which nothing brings back. Go on?")
        }
        (Some(what), false) => format!("This removes {what}. Go on?"),
        (None, _) => {
            let data = match delete_data {
                true => "The data of its volumes, databases and topics are deleted as well.",
                false => "The data of its volumes, databases and topics stay.",
            };
            format!(
                "This removes all of {project}: its services, its routes, and its secrets, whose values are gone for good, those that were \
                 generated as well. {data} Go on?"
            )
        }
    }
}

/// Reads, uploads, applies and prints the changes: what `up` does with its manifest.
pub async fn deliver(
    client: &Client,
    file: &Path,
    environment: Option<&str>,
) -> Result<ProjectName, Failure> {
    let manifest = read(file, environment)?;
    let apply = request(client, file, &manifest).await?;
    let deadline = std::time::Instant::now() + DEPLOY_PATIENCE;
    let key = idempotency_key();
    let applied = loop {
        match client.apply(&manifest.project, &apply, false, &key).await {
            // Of one that ended with the cloud before; it has let go soon.
            Err(error)
                if error.code() == Some("deploy-in-progress")
                    && std::time::Instant::now() < deadline =>
            {
                tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            }
            other => break other,
        }
    };
    match applied {
        Ok(_) => Ok(manifest.project),
        // The operator rolled back, then started anew with the old file: their decision stands.
        Err(error) if is_questionable(error.code()) => {
            notice(&format!("the manifest was not applied: {error}"));
            Ok(manifest.project)
        }
        Err(error) => Err(error.into()),
    }
}

impl Diff {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = globals.client()?;
        let file = self.which.file()?;
        let manifest = read_meant(&file, globals)?;
        let mut applied =
            apply(&client, &file, &manifest, &self.removal, None, true, false).await?;
        let aim = aim_at(&file, globals);
        let left = self.removal.left(&client, &manifest, &aim);
        applied.warnings.extend(left.await);
        self.output.print(&applied, || describe(&applied))?;
        Ok(0)
    }
}

async fn apply(
    client: &Client,
    file: &Path,
    manifest: &Manifest,
    removal: &Removal,
    message: Option<&str>,
    dry_run: bool,
    assented: bool,
) -> Result<wire::Applied, Failure> {
    let mut apply = request(client, file, manifest).await?;
    apply.message = message.map(str::to_owned);
    apply.prune = removal.prune;
    apply.delete_data = removal.delete_data;
    apply.undo_rollback = assented;
    apply.leave_data = assented;
    Ok(client
        .apply(&manifest.project, &apply, dry_run, &idempotency_key())
        .await?)
}

impl ApplyFile {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = globals.client()?;
        let file = self.which.file()?;
        let manifest = read_meant(&file, globals)?;
        if self.removal.delete_data && !self.yes && !self.dry_run {
            assent("This deletes the data of what is removed. Go on?")?;
        }
        let message = self.message.as_deref();
        let apply = |dry_run, assented| {
            let removal = &self.removal;
            apply(
                &client, &file, &manifest, removal, message, dry_run, assented,
            )
        };
        let can_ask = !self.yes && !self.dry_run && std::io::stdin().is_terminal();
        if self.removal.prune && !self.removal.delete_data && can_ask {
            let would = apply(true, false).await?;
            if let Some(question) = removal_question(&would) {
                assent(&question)?;
            }
        }
        let mut applied = match apply(self.dry_run, self.yes).await {
            Err(failure) if failure.is_questionable() && !self.yes => {
                assent(&format!("{}\nGo on?", failure.message))?;
                apply(self.dry_run, true).await?
            }
            other => other?,
        };
        let aim = aim_at(&file, globals);
        let left = self.removal.left(&client, &manifest, &aim);
        applied.warnings.extend(left.await);
        self.output.print(&applied, || describe(&applied))?;
        match self.waiting.patience().filter(|_| !self.dry_run) {
            Some(patience) => {
                let released = released(&applied);
                let services = manifest.services.into_keys();
                let subject =
                    progress::Subject::services(manifest.project, services).with_released(released);
                progress::until_done(globals, subject, patience, self.output).await
            }
            None => Ok(0),
        }
    }
}

impl Delete {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = globals.client()?;
        let project = globals.project(&client).await?;
        if !self.yes && (self.all || self.delete_data) {
            assent(&question(self.name.as_deref(), &project, self.delete_data))?;
        }
        let changes = match (self.kind, &self.name) {
            (Some(kind), Some(name)) => self.delete_one(&client, &project, kind, name).await?,
            _ => client.delete_project(&project, self.delete_data).await?,
        };
        self.output
            .print(&changes, || changes.iter().map(describe_change).collect())?;
        Ok(0)
    }

    /// What others need is deleted by who assents; what holds data by who assents, where somebody can be asked.
    async fn delete_one(
        &self,
        client: &Client,
        project: &ProjectName,
        kind: Kind,
        name: &str,
    ) -> Result<Vec<wire::Change>, Failure> {
        let delete =
            |though_needed| client.delete_as(project, kind, name, self.delete_data, though_needed);
        let is_asked = self.yes || self.delete_data || !std::io::stdin().is_terminal();
        if !is_asked && kind == Kind::Services {
            let spec = client.resource(project, kind, name).await?;
            if spec["volumes"]
                .as_object()
                .is_some_and(|volumes| !volumes.is_empty())
            {
                assent(&format!(
                    "{name} has a volume, whose data stays. Delete {name}?"
                ))?;
            }
        }
        match delete(self.yes).await {
            Err(error) if asks_for_assent(&error, kind) && !self.yes => {
                assent(&format!("{error}\nDelete it?"))?;
                Ok(delete(true).await?)
            }
            other => Ok(other?),
        }
    }
}

/// A needed secret is deleted by no word of anybody: what needs it could not start.
fn asks_for_assent(error: &api::client::Error, kind: Kind) -> bool {
    kind == Kind::Services && error.code() == Some("needed")
}

/// What an apply released, where it changed something.
fn released(applied: &wire::Applied) -> Vec<(ResourceName, ReleaseNumber)> {
    let changed = applied
        .changes
        .iter()
        .filter(|change| change.kind == Kind::Services && change.action != Action::Keep);
    changed
        .filter_map(|change| Some((change.name.parse().ok()?, change.release?)))
        .collect()
}

/// Whether an apply was refused for what somebody may assent to.
fn is_questionable(code: Option<&str>) -> bool {
    code.is_some_and(|code| QUESTIONABLE.contains(&code))
}

/// What an apply did, for people.
pub fn describe(applied: &wire::Applied) -> String {
    let mut text: String = applied
        .changes
        .iter()
        .filter(|change| change.action != Action::Keep)
        .map(describe_change)
        .collect();
    if text.is_empty() {
        text = match applied.dry_run {
            true => "Nothing would change.\n".to_owned(),
            false => "Nothing to change.\n".to_owned(),
        };
    }
    for warning in &applied.warnings {
        text.push_str(&format!("warning: {warning}\n"));
    }
    text
}

/// What `--prune` takes away, for who is to assent; nothing where it takes nothing.
fn removal_question(would: &wire::Applied) -> Option<String> {
    let removed = would.changes.iter();
    let removed: String = removed
        .filter(|change| change.action == Action::Remove)
        .map(describe_change)
        .collect();
    (!removed.is_empty()).then(|| format!("{removed}Remove this?"))
}

fn describe_change(change: &wire::Change) -> String {
    let mark = match change.action {
        Action::Create => '+',
        Action::Change => '~',
        Action::Remove => '-',
        Action::Keep => ' ',
    };
    let kind = change.kind.as_str().trim_end_matches('s');
    let release = change
        .release
        .map_or(String::new(), |number| format!(" (release {number})"));
    let mut text = format!(
        "{mark} {kind} {}: {}{release}\n",
        change.name, change.consequence
    );
    for line in &change.diff {
        text.push_str(&format!("    {line}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is shown prunes what the manifest at hand does not declare, and not what another file does not.
    #[test]
    fn what_is_shown_takes_the_same_file() {
        let globals = Globals::default();
        let table = [
            (MANIFEST, ""),
            ("b.yaml", " -f b.yaml"),
            ("-", " -f -"),
            ("my shop/it's.yaml", r" -f 'my shop/it'\''s.yaml'"),
        ];
        for (file, expected) in table {
            assert_eq!(aim_at(Path::new(file), &globals), expected);
        }
    }

    #[test]
    fn kinds_are_known_in_singular_and_plural() {
        assert_eq!(parse_kind("service"), Ok(Kind::Services));
        assert_eq!(parse_kind("secrets"), Ok(Kind::Secrets));
        assert!(parse_kind("pods").unwrap_err().contains("services"));
    }

    #[test]
    fn what_can_be_deleted_by_name_is_what_is_named() {
        for (text, expected) in [
            ("scale", Ok(Kind::Scales)),
            ("routes", Ok(Kind::Routes)),
            ("pods", Err("kinds are: services, routes, secrets, scales")),
            ("databases", Err("a database is a service: say `services`")),
            ("topic", Err("a topic is a service: say `services`")),
            (
                "releases",
                Err("releases follow from what is applied, and are not deleted by themselves"),
            ),
        ] {
            let expected = expected.map_err(str::to_owned);
            assert_eq!(parse_deletable(text), expected, "{text}");
        }
    }

    #[test]
    fn who_deletes_a_project_is_told_what_goes_for_good() {
        let project = "shop".parse().unwrap();
        for (what, delete_data, says) in [
            (None, false, "values are gone for good"),
            (None, false, "topics stay. Go on?"),
            (None, true, "topics are deleted as well. Go on?"),
            (Some("db"), true, "This removes db and its data, which"),
        ] {
            let said = question(what, &project, delete_data);
            assert!(said.contains(says), "{said}");
        }
    }

    #[test]
    fn what_a_prune_removes_is_asked_about_and_nothing_else_is() {
        let change = |name: &str, action| wire::Change {
            kind: Kind::Services,
            name: name.to_owned(),
            action,
            consequence: "1 instance stops".to_owned(),
            diff: Vec::new(),
            release: None,
        };
        let would = |changes| wire::Applied {
            changes,
            warnings: Vec::new(),
            dry_run: true,
            revision: String::new(),
        };
        let kept = would(vec![
            change("web", Action::Keep),
            change("api", Action::Create),
        ]);
        assert_eq!(removal_question(&kept), None);
        let pruned = would(vec![
            change("web", Action::Keep),
            change("old", Action::Remove),
        ]);
        assert_eq!(
            removal_question(&pruned).unwrap(),
            "- service old: 1 instance stops\nRemove this?"
        );
    }

    /// What is removed anyway needs no warning that it stays.
    #[tokio::test]
    async fn who_prunes_is_not_warned_of_what_is_not_declared() {
        let text = "project: shop\nservices: { web: { run: [sleep, 9] } }\n";
        let source = model::manifest::Source { file: "m", text };
        let manifest = model::manifest::read(source, None).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let client = Client::new(api::client::Transport::Tcp(address), None);
        let removal = Removal {
            prune: true,
            delete_data: false,
        };
        let asking = removal.left(&client, &manifest, "");
        let left = tokio::time::timeout(std::time::Duration::from_secs(5), asking).await;
        assert_eq!(left, Ok(None));
        assert!(listener.accept().is_err(), "the server was asked");
    }

    #[test]
    fn only_what_an_apply_changed_is_waited_for() {
        let change = |kind, name: &str, action| wire::Change {
            kind,
            name: name.to_owned(),
            action,
            consequence: String::new(),
            diff: Vec::new(),
            release: Some(model::ids::ReleaseNumber(3)),
        };
        let applied = wire::Applied {
            changes: vec![
                change(Kind::Services, "web", Action::Change),
                change(Kind::Services, "db", Action::Keep),
                change(Kind::Scales, "api", Action::Change),
            ],
            warnings: Vec::new(),
            dry_run: false,
            revision: String::new(),
        };
        let released: Vec<_> = released(&applied)
            .into_iter()
            .map(|(name, number)| (name.to_string(), number.0))
            .collect();
        assert_eq!(released, [("web".to_owned(), 3)]);
    }

    #[test]
    fn an_apply_is_described_by_its_consequences() {
        let change = wire::Change {
            kind: Kind::Services,
            name: "web".to_owned(),
            action: Action::Change,
            consequence: "3 instances roll".to_owned(),
            diff: vec!["env.A: 1 → 2".to_owned()],
            release: Some(model::ids::ReleaseNumber(2)),
        };
        let applied = wire::Applied {
            changes: vec![change],
            warnings: Vec::new(),
            dry_run: true,
            revision: String::new(),
        };
        expect_test::expect![[r#"
            ~ service web: 3 instances roll (release 2)
                env.A: 1 → 2
        "#]]
        .assert_eq(&describe(&applied));
    }
}
