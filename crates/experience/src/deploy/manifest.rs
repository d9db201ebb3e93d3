//! The manifest as a file: found, read, and all that is wrong with it said at once.

use std::path::{Path, PathBuf};

use model::ids::ProjectName;
use model::manifest::{self, Manifest, Problem};

use crate::Globals;
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
    // A pipe of the shell, as `<(envsubst < FILE)` makes one, is as good as a file.
    if file == Path::new(STDIN) || (file.exists() && !file.is_dir()) {
        return Ok(Some(file));
    }
    let what = match file.is_dir() {
        true => "is a folder, and no manifest",
        false => "does not exist",
    };
    Err(Failure::usage(format!(
        "{} {what}\n  remedy: --file names a manifest, or the folder that holds it; `-` is standard input",
        file.display()
    )))
}

/// Reads the manifest of a command: that of the project that is named, where one is.
pub fn read_meant(file: &Path, globals: &Globals) -> Result<Manifest, Failure> {
    let manifest = read(file, globals.env.as_deref())?;
    check_meant(&manifest, globals)?;
    Ok(manifest)
}

pub(super) fn check_meant(manifest: &Manifest, globals: &Globals) -> Result<(), Failure> {
    match globals.asked_project()? {
        Some(asked) if asked != manifest.project => Err(Failure::usage(format!(
            "the manifest is of project {}, and --project names {asked}\n  remedy: leave --project (and MAINLAND_PROJECT) out, or change `project:` in the manifest",
            manifest.project
        ))),
        _ => Ok(()),
    }
}

/// Reads a manifest; all that is wrong with it becomes one failure.
pub fn read(file: &Path, environment: Option<&str>) -> Result<Manifest, Failure> {
    parse(file, environment)?.map_err(|problems| broken(&problems))
}

/// Reads a manifest, or tells each problem of it.
pub(super) fn parse(
    file: &Path,
    environment: Option<&str>,
) -> Result<Result<Manifest, Vec<Problem>>, Failure> {
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
    let text = text(&shown, bytes)?;
    let source = manifest::Source {
        file: &shown,
        text: &text,
    };
    Ok(manifest::read(source, environment))
}

/// The file as a text. What is too long to be read whole may end within a letter.
fn text(shown: &str, bytes: Vec<u8>) -> Result<String, Failure> {
    if bytes.len() > manifest::SIZE_MAX {
        return Err(Failure::failed(format!(
            "{shown} is larger than {} MiB, the most that is read of a manifest [manifest]",
            manifest::SIZE_MAX >> 20
        )));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Failure::failed(format!(
            "{shown} is no text: byte {} is not UTF-8 [manifest]",
            at + 1
        ))
    })
}

pub(super) fn broken(problems: &[Problem]) -> Failure {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    let count = lines.len();
    let plural = if count == 1 { "" } else { "s" };
    let file = problems.first().map_or("", |first| first.file.as_str());
    Failure::failed(format!(
        "{count} problem{plural} in {file} [manifest]\n{}",
        lines.join("\n")
    ))
}

/// The project of a manifest.
pub fn project_of(file: &Path, environment: Option<&str>) -> Result<ProjectName, Failure> {
    read(file, environment).map(|manifest| manifest.project)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "project: shop\nservices: { web: { run: [./web] } }\n";

    fn read_text(bytes: &[u8]) -> Result<Manifest, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(MANIFEST);
        std::fs::write(&file, bytes).unwrap();
        let read = read(folder.path(), None);
        read.map_err(|failure| {
            assert_eq!(failure.exit_code, crate::failure::FAILED);
            failure.message
        })
    }

    #[test]
    fn what_is_no_manifest_is_said_to_be_none() {
        let large = vec![b'#'; 10 << 20];
        // The letter that the bound cuts in two is none of the file's faults.
        let mut wide = b"#".to_vec();
        wide.extend("ä".repeat(manifest::SIZE_MAX / 2).bytes());
        let nested = |levels| format!("project: shop\nservices: {}", "[".repeat(levels));
        let (deep, deepest) = (nested(100), nested(100_000));
        let table: [(&[u8], &str); 12] = [
            (b"", "is empty"),
            (b"\n\n# nothing\n", "is empty"),
            (b"{ not: yaml", "not YAML"),
            (b"just words", "mapping"),
            (b"project: shop\nservices:\n\tweb:\n", ":3:"),
            (b"\x00\x01\xff\xfe", "byte 3 is not UTF-8"),
            (b"\x7fELF\x00\x01", "not YAML"),
            (&large, "larger than 1 MiB"),
            (&wide, "larger than 1 MiB"),
            (deep.as_bytes(), "nested deeper"),
            (deepest.as_bytes(), "recursion limit"),
            (b"project: shop\nproject: shop\n", "project"),
        ];
        for (bytes, expected) in table {
            let start = String::from_utf8_lossy(&bytes[..bytes.len().min(30)]).into_owned();
            let said = read_text(bytes).expect_err(&start);
            assert!(said.contains(expected), "{start:?}: {said}");
        }
    }

    #[test]
    fn marks_and_line_ends_of_other_systems_are_no_fault() {
        for text in [
            GOOD.to_owned(),
            format!("\u{feff}{GOOD}"),
            GOOD.replace('\n', "\r\n"),
        ] {
            assert_eq!(read_text(text.as_bytes()).unwrap().project.as_str(), "shop");
        }
    }

    #[test]
    fn a_path_that_leads_to_no_manifest_says_why() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(MANIFEST)).unwrap();
        for (path, expected) in [
            (folder.path().to_owned(), "is a folder, and no manifest"),
            (folder.path().join("none"), "does not exist"),
        ] {
            let failure = find_manifest(Some(path)).unwrap_err();
            assert!(failure.message.contains(expected), "{}", failure.message);
            assert_eq!(failure.exit_code, crate::failure::USAGE);
        }
        let null = PathBuf::from("/dev/null");
        assert_eq!(find_manifest(Some(null.clone())).unwrap(), Some(null));
    }

    #[test]
    fn a_manifest_of_another_project_is_not_the_one_that_is_meant() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(MANIFEST), GOOD).unwrap();
        for (asked, is_meant) in [(None, true), (Some("shop"), true), (Some("other"), false)] {
            let mut globals = Globals::default();
            globals.project = asked.map(str::to_owned);
            assert_eq!(
                read_meant(folder.path(), &globals).is_ok(),
                is_meant,
                "{asked:?}"
            );
        }
    }
}
