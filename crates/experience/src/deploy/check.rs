//! `check`: what is wrong with a manifest, and what fails alone.

use std::path::Path;

use api::wire;
use model::manifest::Manifest;

use super::request::routes;
use super::{Which, read};
use crate::failure::Failure;
use crate::output::say;
use crate::{Globals, idempotency_key};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mainland check -f shop/mainland.yaml")]
pub struct Check {
    #[command(flatten)]
    which: Which,
}

impl Check {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let file = self.which.file()?;
        let manifest = read(&file, globals.env.as_deref())?;
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
        for warning in weak_points(globals, &manifest).await {
            say(&format!("warning: {warning}"))?;
        }
        Ok(0)
    }
}

/// What fails alone. A cloud that answers knows its machines as well, and whether they could bear the loss of a zone; without one, what the file
/// itself tells.
async fn weak_points(globals: &Globals, manifest: &Manifest) -> Vec<String> {
    let specs = || {
        manifest
            .services
            .iter()
            .map(|(name, declared)| (name, &declared.spec))
    };
    let of_file = || model::state::single_points(specs());
    let Ok(client) = globals.client() else {
        return of_file();
    };
    // Artifacts and the values of secrets change nothing of this, so none are sent.
    let apply = wire::Apply {
        services: specs()
            .map(|(name, spec)| (name.clone(), spec.clone()))
            .collect(),
        routes: routes(manifest),
        secrets: manifest.secrets.clone(),
        ..wire::Apply::default()
    };
    match client
        .apply(&manifest.project, &apply, true, &idempotency_key())
        .await
    {
        Ok(applied) => applied.warnings,
        Err(api::client::Error::Refused(problem)) if !matches!(problem.status, 401 | 403) => {
            let mut all = of_file();
            all.insert(
                0,
                format!(
                    "the cloud at {} would refuse it: {}",
                    client.transport(),
                    problem.title
                ),
            );
            all
        }
        Err(_) => of_file(),
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
