//! A manifest as a request: artifacts made and uploaded, secret files read.

use std::collections::BTreeMap;
use std::path::Path;

use api::client::Client;
use api::wire;
use model::compute::Work;
use model::ids::ResourceName;
use model::manifest::{DeclaredService, Manifest};
use model::traffic::Route;

use super::manifest::broken;
use super::values::Values;
use crate::failure::Failure;
use crate::{artifact, notice, progress, secret};

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
        secret_values: secret_values(file, manifest)?,
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

/// Read from their files. What the kernel would not take of them is told before anything is uploaded.
fn secret_values(
    file: &Path,
    manifest: &Manifest,
) -> Result<BTreeMap<ResourceName, String>, Failure> {
    let folder = file.parent().unwrap_or(Path::new(""));
    let values = Values::read(folder, &manifest.secrets);
    if let Some(unread) = values.unread.first() {
        return Err(Failure::failed(format!("{unread} [secret]")));
    }
    let refused = manifest.refused_values(&file.display().to_string(), &values.shapes());
    if !refused.is_empty() {
        return Err(broken(&refused));
    }
    for warning in values.warnings() {
        notice(&warning);
    }
    let read = values.read.into_iter();
    read.map(|(name, value)| Ok((name, secret::encode(&value)?)))
        .collect()
}
