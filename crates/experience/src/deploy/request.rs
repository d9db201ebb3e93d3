//! A manifest as a request: artifacts made and uploaded, secret files read.

use std::collections::BTreeMap;
use std::path::Path;

use api::client::Client;
use api::wire;
use model::boundary::SecretSource;
use model::compute::Work;
use model::ids::ResourceName;
use model::manifest::{DeclaredService, Manifest};
use model::traffic::Route;

use crate::failure::Failure;
use crate::{artifact, input, progress, secret};

/// Turns a manifest into a request: artifacts made and uploaded, secret files read.
pub(super) async fn request(
    client: &Client,
    file: &Path,
    manifest: &Manifest,
) -> Result<wire::Apply, Failure> {
    let folder = file.parent().unwrap_or(Path::new("")).to_owned();
    let mut apply = wire::Apply {
        routes: routes(manifest),
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

/// In the order of the file.
pub(super) fn routes(manifest: &Manifest) -> Vec<Route> {
    let routes = manifest.routes.iter();
    routes.map(|(_, route)| route.clone()).collect()
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
        let file = std::fs::File::open(folder.join(path));
        let read = file.and_then(|file| input::read(file, secret::VALUE_MAX_BYTES));
        let bytes = read.map_err(|error| {
            Failure::failed(format!(
                "secret {name}: {} can't be read: {error} [secret]",
                folder.join(path).display()
            ))
        })?;
        values.insert(name.clone(), secret::encode(&bytes)?);
    }
    Ok(values)
}
