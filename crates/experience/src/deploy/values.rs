//! The values of secrets that come from files.

use std::collections::BTreeMap;
use std::path::Path;

use model::boundary::SecretSource;
use model::compute::programs::SecretShape;
use model::ids::ResourceName;

use crate::{input, secret};

/// What was read, and a sentence for each file that was not.
#[derive(Debug, Default)]
pub(super) struct Values {
    pub read: BTreeMap<ResourceName, Vec<u8>>,
    pub unread: Vec<String>,
}

impl Values {
    /// Reads each file of `secrets`; paths are relative to `folder`.
    pub fn read(folder: &Path, secrets: &BTreeMap<ResourceName, SecretSource>) -> Self {
        let mut values = Self::default();
        for (name, source) in secrets {
            let SecretSource::File { path } = source else {
                continue;
            };
            match read(&folder.join(path)) {
                Ok(bytes) => drop(values.read.insert(name.clone(), bytes)),
                Err(why) => values.unread.push(format!("secret {name}: {why}")),
            }
        }
        values
    }

    /// What the kernel takes is asked of the length and the kind of each.
    pub fn shapes(&self) -> BTreeMap<ResourceName, SecretShape> {
        let read = self.read.iter();
        read.map(|(name, value)| (name.clone(), SecretShape::of(value)))
            .collect()
    }

    /// Values of one line that end in a line break, which programs seldom expect: `echo` has put it there. A text of several lines, such as a
    /// certificate, ends so on purpose.
    pub fn warnings(&self) -> Vec<String> {
        let one_line = |value: &[u8]| value.iter().filter(|byte| **byte == b'\n').count() == 1;
        let broken = self
            .read
            .iter()
            .filter(|(_, value)| secret::ends_in_line_break(value) && one_line(value));
        broken
            .map(|(name, _)| {
                format!(
                    "the file of secret {name} ends in a line break, which is part of its value; without it: `printf %s VALUE > FILE`"
                )
            })
            .collect()
    }
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    let shown = file.display();
    let read =
        std::fs::File::open(file).and_then(|file| input::read(file, secret::VALUE_MAX_BYTES));
    let bytes = read.map_err(|error| format!("{shown} can't be read: {error}"))?;
    match bytes.len() {
        0 => Err(format!("{shown} is empty, and an empty value is no secret")),
        length if length > secret::VALUE_MAX_BYTES => Err(format!(
            "{shown} is larger than {} bytes, the most of one secret",
            secret::VALUE_MAX_BYTES
        )),
        _ => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_values_byte_by_byte() {
        let folder = tempfile::tempdir().unwrap();
        let long = vec![b'x'; secret::VALUE_MAX_BYTES + 1];
        let files: [(&str, &[u8]); 6] = [
            ("plain", b"x"),
            ("echoed", b"x\n"),
            ("pem", b"-----BEGIN\n-----END\n"),
            ("binary", &[0x0a; 33]),
            ("empty", b""),
            ("long", &long),
        ];
        let mut secrets = BTreeMap::new();
        for (name, bytes) in files {
            std::fs::write(folder.path().join(name), bytes).unwrap();
            let path = name.to_owned();
            secrets.insert(name.parse().unwrap(), SecretSource::File { path });
        }
        let path = "gone".to_owned();
        secrets.insert("gone".parse().unwrap(), SecretSource::File { path });
        let values = Values::read(folder.path(), &secrets);
        for (name, bytes) in &files[..4] {
            assert_eq!(values.read[*name], *bytes, "{name}");
        }
        let unread = values.unread.join("\n");
        for expected in [
            "empty is empty",
            "gone can't be read",
            "long is larger than 65536",
        ] {
            assert!(unread.contains(expected), "{unread}");
        }
        assert_eq!(values.warnings().len(), 1);
        assert!(values.warnings()[0].contains("secret echoed ends in a line break"));
    }
}
