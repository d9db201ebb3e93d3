//! Which paths and symlinks stay inside of a folder: one rule for who packs an artifact and who unpacks it.

use std::path::{Component, Path, PathBuf};

/// The path without `.` parts; `None` when it is absolute, empty or climbs.
pub fn inside(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => clean.push(part),
            Component::CurDir => {}
            _ => return None,
        }
    }
    (!clean.as_os_str().is_empty()).then_some(clean)
}

/// Whether a symlink at `path` with this target stays below the root, read part by part.
pub fn stays_inside(path: &Path, target: &Path) -> bool {
    let mut depth = path.components().count() as i64 - 1;
    for part in target.components() {
        match part {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir => depth -= 1,
            Component::RootDir | Component::Prefix(_) => return false,
        }
        if depth < 0 {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symlinks_stay_inside_like_a_table() {
        let table = [
            ("a", "b", true),
            ("a", "../b", false),
            ("x/a", "../b", true),
            ("x/a", "../../b", false),
            ("a", "/etc/passwd", false),
            ("a", "b/../../c", false),
            ("x/a", "./y/../../b", true),
        ];
        for (path, target, expected) in table {
            assert_eq!(
                stays_inside(Path::new(path), Path::new(target)),
                expected,
                "{path} -> {target}"
            );
        }
    }

    #[test]
    fn names_are_made_safe_like_a_table() {
        let table = [
            ("./checkout", Some("checkout")),
            ("bin/./x", Some("bin/x")),
            ("/bin/x", None),
            ("../x", None),
            (".", None),
            ("", None),
        ];
        for (name, expected) in table {
            assert_eq!(
                inside(Path::new(name)),
                expected.map(PathBuf::from),
                "{name}"
            );
        }
    }
}
