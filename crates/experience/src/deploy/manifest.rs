//! The manifest as a file: found, read, and all that is wrong with it said at once.

use std::path::{Path, PathBuf};

use model::ids::ProjectName;
use model::manifest::{self, Manifest};

use crate::failure::Failure;
use crate::input;

pub const MANIFEST: &str = "mainland.yaml";
const STDIN: &str = "-";

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
            input::read(std::io::stdin().lock(), manifest::SIZE_MAX),
        ),
        false => (
            file.display().to_string(),
            std::fs::File::open(&file).and_then(|file| input::read(file, manifest::SIZE_MAX)),
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

/// The project of a manifest.
pub fn project_of(file: &Path, environment: Option<&str>) -> Result<ProjectName, Failure> {
    read(file, environment).map(|manifest| manifest.project)
}
