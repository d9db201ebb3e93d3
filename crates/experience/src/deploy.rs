//! `check`, `diff`, `apply`, `delete`: manifest in, consequences out.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use api::client::Client;
use api::wire::{self, Action, Kind};
use model::boundary::SecretSource;
use model::compute::Work;
use model::ids::{ProjectName, ResourceName};
use model::manifest::{self, DeclaredService, Manifest};

use crate::failure::Failure;
use crate::output::{Output, say};
use crate::{Globals, artifact, assent, idempotency_key, notice, progress};

pub const MANIFEST: &str = "mainland.yaml";
const STDIN: &str = "-";

/// Which manifest, which environment.
#[derive(Debug, Clone, clap::Args)]
pub struct Which {
    /// The manifest, or the folder that holds it; `-` is standard input
    #[arg(short, long, value_name = "FILE", default_value = MANIFEST)]
    file: PathBuf,
    /// The same without -f
    #[arg(value_name = "PATH", conflicts_with = "file")]
    path: Option<PathBuf>,
    /// Environment of the manifest: project NAME-ENV with its overlay
    #[arg(long, value_name = "NAME")]
    env: Option<String>,
}

impl Which {
    /// The manifest itself, where a folder was named.
    fn file(&self) -> Result<PathBuf, Failure> {
        let path = self.path.as_ref().unwrap_or(&self.file).clone();
        Ok(find_manifest(Some(path.clone()))?.unwrap_or(path))
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mainland check -f shop/mainland.yaml")]
pub struct Check {
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit code 0: nothing to change, or changes are listed.\n\nExample:\n  mainland diff --env staging"
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
#[command(after_help = "Example:\n  mainland apply -f mainland.yaml --wait")]
pub struct ApplyFile {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    removal: Removal,
    /// Only say what would change
    #[arg(long)]
    dry_run: bool,
    /// Wait until what changed is ready; exit 1 if it does not become so
    #[arg(long)]
    wait: bool,
    /// How long to wait
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = crate::parse_span)]
    timeout: std::time::Duration,
    /// Assent to what would otherwise be asked
    #[arg(short)]
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

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  mainland delete services checkout\n  mainland delete --all -y"
)]
pub struct Delete {
    /// services, routes, secrets or scales
    #[arg(value_parser = parse_kind, required_unless_present = "all")]
    kind: Option<Kind>,
    #[arg(required_unless_present = "all")]
    name: Option<String>,
    /// The whole project
    #[arg(long, conflicts_with_all = ["kind", "name"])]
    all: bool,
    /// Delete the data of its volumes as well
    #[arg(long)]
    delete_data: bool,
    /// Assent
    #[arg(short)]
    yes: bool,
}

/// `services`, or `service`.
pub fn parse_kind(text: &str) -> Result<Kind, String> {
    let found = Kind::ALL
        .into_iter()
        .find(|kind| kind.as_str() == text || kind.as_str().trim_end_matches('s') == text);
    found.ok_or_else(|| {
        let known: Vec<_> = Kind::ALL.into_iter().map(Kind::as_str).collect();
        format!("kinds are: {}", known.join(", "))
    })
}

/// The manifest that a path means: itself, or the one in the folder; without a path the one here, if there is one.
pub fn find_manifest(path: Option<PathBuf>) -> Result<Option<PathBuf>, Failure> {
    let Some(path) = path else {
        let here = PathBuf::from(MANIFEST);
        return Ok(here.is_file().then_some(here));
    };
    let file = if path.is_dir() {
        path.join(MANIFEST)
    } else {
        path
    };
    match file.is_file() || file == Path::new(STDIN) {
        true => Ok(Some(file)),
        false => Err(Failure::usage(format!(
            "there is no manifest {}; --file names another, `-` is standard input",
            file.display()
        ))),
    }
}

/// Reads a manifest; all that is wrong with it becomes one failure.
pub fn read(file: &Path, environment: Option<&str>) -> Result<Manifest, Failure> {
    let file = find_manifest(Some(file.to_owned()))?.unwrap_or_else(|| file.to_owned());
    let (shown, bytes) = match file == Path::new(STDIN) {
        true => (
            "standard input".to_owned(),
            read_all(std::io::stdin().lock()),
        ),
        false => (
            file.display().to_string(),
            std::fs::File::open(&file).and_then(read_all),
        ),
    };
    let bytes =
        bytes.map_err(|error| Failure::failed(format!("{shown} can't be read: {error}")))?;
    let text = String::from_utf8(bytes)
        .map_err(|_| Failure::failed(format!("{shown} is not UTF-8 text")))?;
    manifest::read(
        manifest::Source {
            file: &shown,
            text: &text,
        },
        environment,
    )
    .map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let count = lines.len();
        let plural = if count == 1 { "" } else { "s" };
        Failure::failed(format!(
            "{count} problem{plural} in {shown} [manifest]\n{}",
            lines.join("\n")
        ))
    })
}

/// One byte more than a manifest may have is enough for the reader to say so.
fn read_all(from: impl std::io::Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(manifest::SIZE_MAX as u64 + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The project of a manifest.
pub fn project_of(file: &Path, environment: Option<&str>) -> Result<ProjectName, Failure> {
    read(file, environment).map(|manifest| manifest.project)
}

/// Reads, uploads, applies and prints the changes: what `up` does with its manifest.
pub async fn deliver(
    client: &Client,
    file: &Path,
    environment: Option<&str>,
) -> Result<ProjectName, Failure> {
    let manifest = read(file, environment)?;
    let apply = request(client, file, &manifest).await?;
    match client
        .apply(&manifest.project, &apply, false, &idempotency_key())
        .await
    {
        Ok(_) => Ok(manifest.project),
        // The operator rolled back, then started anew with the old file: their decision stands.
        Err(error) if error.code() == Some("would-undo-rollback") => {
            notice(&format!("the manifest was not applied: {error}"));
            Ok(manifest.project)
        }
        Err(error) => Err(error.into()),
    }
}

/// Turns a manifest into a request: artifacts made and uploaded, secret files read.
async fn request(
    client: &Client,
    file: &Path,
    manifest: &Manifest,
) -> Result<wire::Apply, Failure> {
    let folder = file.parent().unwrap_or(Path::new("")).to_owned();
    let mut apply = wire::Apply {
        routes: manifest
            .routes
            .iter()
            .map(|(_, route)| route.clone())
            .collect(),
        secrets: manifest.secrets.clone(),
        secret_values: secret_values(&folder, &manifest.secrets)?,
        ..Default::default()
    };
    for (name, declared) in &manifest.services {
        let mut spec = declared.spec.clone();
        if let Work::Process {
            artifact: slot,
            run,
        } = &mut spec.work
        {
            *slot = upload(client, &folder, name, declared, run).await?;
        }
        apply.services.insert(name.clone(), spec);
    }
    Ok(apply)
}

async fn upload(
    client: &Client,
    folder: &Path,
    service: &ResourceName,
    declared: &DeclaredService,
    run: &[String],
) -> Result<Option<model::compute::ArtifactRef>, Failure> {
    let Some(files) = &declared.files else {
        return Ok(None);
    };
    // A lone executable keeps the name that `run` calls it by; any other lone file its own.
    let alone = || {
        Path::new(files)
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
    };
    let called = run
        .first()
        .is_some_and(|first| first == files && !first.starts_with("..") && !first.starts_with('/'));
    let name = if called {
        files.clone()
    } else {
        alone().unwrap_or_default()
    };
    let (limits, spool) = (artifact::Limits::default(), std::env::temp_dir());
    let made = artifact::make(&folder.join(files), &name, limits, &spool);
    let artifact = made.map_err(|error| {
        Failure::failed(format!(
            "service {service}: `{files}` can't be uploaded: {error} [artifact]"
        ))
    })?;
    let mut bar = progress::Upload::new(service, artifact.reference.size);
    artifact
        .upload(client, &mut |sent, total| bar.at(sent, total))
        .await?;
    Ok(Some(artifact.reference))
}

fn secret_values(
    folder: &Path,
    secrets: &BTreeMap<ResourceName, SecretSource>,
) -> Result<BTreeMap<ResourceName, String>, Failure> {
    let mut values = BTreeMap::new();
    for (name, source) in secrets {
        let SecretSource::File { path } = source else {
            continue;
        };
        let bytes = std::fs::read(folder.join(path)).map_err(|error| {
            Failure::failed(format!(
                "secret {name}: {} can't be read: {error} [secret]",
                folder.join(path).display()
            ))
        })?;
        values.insert(name.clone(), crate::operate::encode_secret(&bytes)?);
    }
    Ok(values)
}

impl Check {
    pub fn run(self, _: &Globals) -> Result<u8, Failure> {
        let file = self.which.file()?;
        let manifest = read(&file, self.which.env.as_deref())?;
        for warning in &manifest.warnings {
            say(&format!("warning: {warning}"))?;
        }
        let missing = missing_files(&file, &manifest);
        if !missing.is_empty() {
            return Err(Failure::failed(missing.join("\n")));
        }
        let count = |number: usize, what: &str| {
            format!("{number} {what}{}", if number == 1 { "" } else { "s" })
        };
        say(&format!(
            "{} is good: {}, {}",
            manifest.project,
            count(manifest.services.len(), "service"),
            count(manifest.routes.len(), "route")
        ))?;
        Ok(0)
    }
}

fn missing_files(file: &Path, manifest: &Manifest) -> Vec<String> {
    let folder = file.parent().unwrap_or(Path::new(""));
    let files = manifest
        .services
        .iter()
        .filter_map(|(name, service)| Some((name, service.files.as_ref()?, service)));
    files
        .filter(|(_, files, _)| !folder.join(files).exists())
        .map(|(name, files, service)| {
            format!(
                "{}:{}: services.{name}: `{files}` does not exist",
                file.display(),
                service.position.line
            )
        })
        .collect()
}

impl Diff {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = globals.client()?;
        let file = self.which.file()?;
        let manifest = read(&file, self.which.env.as_deref())?;
        let applied = apply(&client, &file, &manifest, &self.removal, true, false).await?;
        self.output.print(&applied, || describe(&applied))?;
        Ok(0)
    }
}

async fn apply(
    client: &Client,
    file: &Path,
    manifest: &Manifest,
    removal: &Removal,
    dry_run: bool,
    undo_rollback: bool,
) -> Result<wire::Applied, Failure> {
    let mut apply = request(client, file, manifest).await?;
    apply.prune = removal.prune;
    apply.delete_data = removal.delete_data;
    apply.undo_rollback = undo_rollback;
    Ok(client
        .apply(&manifest.project, &apply, dry_run, &idempotency_key())
        .await?)
}

impl ApplyFile {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = globals.client()?;
        let file = self.which.file()?;
        let manifest = read(&file, self.which.env.as_deref())?;
        if self.removal.delete_data && !self.yes && !self.dry_run {
            assent("This deletes the data of what is removed. Go on?")?;
        }
        let applied = match apply(
            &client,
            &file,
            &manifest,
            &self.removal,
            self.dry_run,
            self.yes,
        )
        .await
        {
            Err(failure) if failure.message.contains("[would-undo-rollback]") && !self.yes => {
                assent(&format!("{}\nUndo it?", failure.message))?;
                apply(&client, &file, &manifest, &self.removal, self.dry_run, true).await?
            }
            other => other?,
        };
        self.output.print(&applied, || describe(&applied))?;
        if self.wait && !self.dry_run {
            let subject =
                progress::Subject::services(manifest.project, manifest.services.into_keys());
            return progress::until_ready(globals, &[subject], self.timeout).await;
        }
        Ok(0)
    }
}

impl Delete {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = globals.client()?;
        let project = globals.project(&client).await?;
        if !self.yes && (self.all || self.delete_data) {
            let what = self.name.clone().unwrap_or(format!("all of {project}"));
            let data = if self.delete_data {
                " and its data"
            } else {
                ""
            };
            assent(&format!("This removes {what}{data}. Go on?"))?;
        }
        let changes = match (self.kind, self.name) {
            (Some(kind), Some(name)) => {
                client
                    .delete(&project, kind, &name, self.delete_data)
                    .await?
            }
            _ => client.delete_project(&project, self.delete_data).await?,
        };
        say(&changes.iter().map(describe_change).collect::<String>())?;
        Ok(0)
    }
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
        text = "Nothing to change.\n".to_owned();
    }
    for warning in &applied.warnings {
        text.push_str(&format!("warning: {warning}\n"));
    }
    text
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

    #[test]
    fn kinds_are_known_in_singular_and_plural() {
        assert_eq!(parse_kind("service"), Ok(Kind::Services));
        assert_eq!(parse_kind("secrets"), Ok(Kind::Secrets));
        assert!(parse_kind("pods").unwrap_err().contains("services"));
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
