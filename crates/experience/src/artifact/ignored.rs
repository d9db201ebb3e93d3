//! What of a folder is left out: what nobody means to upload, and what `.mainlandignore` says, as `.gitignore` does for git.

use std::path::{Path, PathBuf};

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::Error;

/// The file's name, in the folder that is uploaded or in any below it. It is left out itself.
pub const IGNORE_FILE: &str = ".mainlandignore";
/// What version control keeps: a change of it is no change of the program.
const NEVER: [&str; 4] = [".git", ".hg", ".svn", ".jj"];

/// The rules of the folders from the uploaded one down to one below it.
#[derive(Debug, Clone, Default)]
pub struct Ignored {
    /// The outermost first; a later one goes before an earlier one.
    rules: Vec<Gitignore>,
}

impl Ignored {
    /// With those of the file in `folder`, a relative path below `root`, if it has one.
    pub fn with(&self, root: &Path, folder: &Path) -> Result<Self, Error> {
        let full = root.join(folder);
        let file = full.join(IGNORE_FILE);
        let mut all = self.clone();
        if !file.is_file() {
            return Ok(all);
        }
        let unreadable = |error: ignore::Error| Error::IgnoreFile {
            path: file.clone(),
            error: error.to_string(),
        };
        let mut builder = GitignoreBuilder::new(&full);
        if let Some(error) = builder.add(&file) {
            return Err(unreadable(error));
        }
        all.rules.push(builder.build().map_err(unreadable)?);
        Ok(all)
    }

    /// Whether a path below `root` is left out. What is below a folder that is left out is not asked for.
    pub fn leaves_out(&self, root: &Path, path: &Path, is_folder: bool) -> bool {
        let named = |names: &[&str]| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| names.contains(&name))
        };
        if named(&NEVER) || named(&[IGNORE_FILE]) || path == Path::new(crate::deploy::MANIFEST) {
            return true;
        }
        let full: PathBuf = root.join(path);
        let matches = self.rules.iter().rev();
        let decided = matches
            .map(|rules| rules.matched(&full, is_folder))
            .find(|found| !found.is_none());
        matches!(decided, Some(Match::Ignore(_)))
    }
}
