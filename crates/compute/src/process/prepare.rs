//! Making an instance's working directory, and removing all of the instance.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use crate::artifact::{self, unpack};
use crate::beneath::{remove_moved, remove_tree};
use crate::cgroup::Group;
use crate::instance::{self, Prepared};
use crate::runtime::{Error, Identity, InstanceSpec, SecretFile, VolumeMount};
use crate::volume::take_over;

const SECRET_LIST: &str = "secret-files.json";

pub(super) fn prepare(spec: &InstanceSpec) -> Result<(), Error> {
    let directory = &spec.directory;
    fs::create_dir_all(directory).map_err(Error::io("making", directory))?;
    remove_moved(directory).map_err(Error::io("removing what is left in", directory))?;
    // Others may pass, not look: the workload's user must reach its working directory.
    set_mode(directory, 0o711)?;
    let wanted = Prepared {
        owner: spec.identity,
        artifact: spec
            .artifact
            .as_ref()
            .map(|artifact| artifact.reference.digest),
    };
    let work = instance::work_directory(directory);
    if instance::read_prepared(directory).as_ref() != Some(&wanted) || !work.is_dir() {
        make_work(spec, &work)?;
        instance::write_prepared(directory, &wanted)
            .map_err(Error::io("recording in", directory))?;
    }
    for volume in &spec.volumes {
        link_volume(volume, &work, spec.identity)?;
    }
    write_secrets(spec)
}

/// The copy is made aside and renamed, so that a half-made one is never taken for whole. Until then nobody else can enter it: what is unpacked
/// belongs to the service's user already, as which other copies of it run beside.
fn make_work(spec: &InstanceSpec, work: &Path) -> Result<(), Error> {
    let fresh = spec.directory.join("work.new");
    remove_folder(&fresh)?;
    let private = DirBuilder::new().mode(0o700).create(&fresh);
    private.map_err(Error::io("making", &fresh))?;
    if let Some(artifact) = &spec.artifact {
        let file = File::open(&artifact.path).map_err(Error::io("opening", &artifact.path))?;
        match artifact::verify(&file, &artifact.path, artifact.reference.digest) {
            Err(artifact::Error::Mismatch { digest, .. }) => {
                instance::remove_if_there(&artifact.path)
                    .map_err(Error::io("removing", &artifact.path))?;
                return Err(Error::CorruptArtifact { digest });
            }
            verified => verified?,
        }
        unpack::unpack(&artifact.reference, &artifact.path, &fresh, spec.identity)?;
    }
    set_mode(&fresh, 0o700)?;
    give(&fresh, spec.identity)?;
    remove_folder(work)?;
    fs::rename(&fresh, work).map_err(Error::io("placing", work))
}

fn link_volume(volume: &VolumeMount, work: &Path, owner: Option<Identity>) -> Result<(), Error> {
    let missing = || Error::VolumeMissing {
        name: volume.name.clone(),
        directory: volume.directory.clone(),
    };
    let target = fs::canonicalize(&volume.directory).map_err(|_| missing())?;
    if let Some(owner) = owner {
        take_over(&target, owner).map_err(Error::io("giving away", &target))?;
    }
    set_mode(&target, 0o700)?;
    let link = work.join(volume.name.as_str());
    match fs::read_link(&link) {
        Ok(found) if found == target => return Ok(()),
        Ok(_) => fs::remove_file(&link).map_err(Error::io("removing", &link))?,
        // An empty folder of that name in the artifact is where its author expects the volume.
        Err(_) if link.exists() => {
            fs::remove_dir(&link).map_err(|_| Error::VolumeHidden {
                name: volume.name.clone(),
            })?;
        }
        Err(_) => {}
    }
    symlink(&target, &link).map_err(Error::io("linking", &link))
}

fn write_secrets(spec: &InstanceSpec) -> Result<(), Error> {
    let paths: Vec<&PathBuf> = spec.secret_files.iter().map(|file| &file.path).collect();
    if paths.is_empty() {
        return Ok(());
    }
    // The list first: a secret that is written is always one that will be removed.
    let list = spec.directory.join(SECRET_LIST);
    let text = serde_json::to_vec(&paths)
        .map_err(io::Error::from)
        .map_err(Error::io("writing", &list))?;
    instance::write_private(&list, &text).map_err(Error::io("writing", &list))?;
    spec.secret_files
        .iter()
        .try_for_each(|file| write_secret(file, spec.identity))
}

fn write_secret(secret: &SecretFile, owner: Option<Identity>) -> Result<(), Error> {
    let written = |error| Error::io("writing", &secret.path)(error);
    if let Some(folder) = secret.path.parent() {
        let mut passage = DirBuilder::new();
        let made = passage.recursive(true).mode(0o711).create(folder);
        made.map_err(written)?;
    }
    instance::remove_if_there(&secret.path).map_err(written)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o400)
        .open(&secret.path)
        .map_err(written)?;
    file.write_all(&secret.contents).map_err(written)?;
    give(&secret.path, owner)
}

/// Removes the instance's directory, its cgroup and its secret files.
pub(super) fn remove(directory: &Path, cgroup: Option<Group>) -> Result<(), Error> {
    let list = directory.join(SECRET_LIST);
    let paths: Vec<PathBuf> = fs::read(&list)
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default();
    for path in paths {
        instance::remove_if_there(&path).map_err(Error::io("removing", &path))?;
        // The folder made for it, if nothing else is in it.
        let _ = path.parent().map(fs::remove_dir);
    }
    if let Some(group) = cgroup {
        group.remove()?;
    }
    if let Some(group) = instance::read_record(directory).and_then(|record| record.cgroup) {
        // That of a former agent, which may have been in another place.
        group.remove()?;
    }
    remove_folder(directory)
}

fn remove_folder(path: &Path) -> Result<(), Error> {
    remove_tree(path).map_err(Error::io("removing", path))
}

fn set_mode(path: &Path, mode: u32) -> Result<(), Error> {
    fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(Error::io("setting the mode of", path))
}

fn give(path: &Path, owner: Option<Identity>) -> Result<(), Error> {
    let Some(owner) = owner else { return Ok(()) };
    chown(path, Some(owner.uid), Some(owner.gid)).map_err(Error::io("giving away", path))
}
