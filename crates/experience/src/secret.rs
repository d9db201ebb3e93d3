//! `secret list`, `secret set`, `secret rotate-key`.

use std::io::IsTerminal;

use api::wire;
use jiff::Timestamp;
use model::ids::ResourceName;

use crate::failure::Failure;
use crate::output::{Output, age, table, warnings};
use crate::{Globals, input, notice};

/// Longest value of a secret.
pub const VALUE_MAX_BYTES: usize = 64 << 10;

#[derive(Debug, clap::Subcommand)]
pub enum Secret {
    /// List secrets: never their values
    List(List),
    /// Give a secret a value, read from standard input or a file
    Set(Set),
    /// Seal all secrets of the cloud by a new key
    RotateKey(RotateKey),
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "The server makes a new key in its `keyring` file, wraps what seals each secret anew by it, and forgets the old keys. What runs does not \
                  notice. Ended half way, it goes on when the server starts. A copy of the store from before needs a copy of the old file.\n\n\
                  Examples:\n  mainland secret rotate-key\n  mainland secret rotate-key --status"
)]
pub struct RotateKey {
    /// Only show the keys there are, and how many secrets each seals
    #[arg(long)]
    status: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mainland secret list")]
pub struct List {
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "A value has 1 byte to 64 KiB, and is kept as it is, a line break at its end included: that is said, and --trim takes it off. Only \
                  what is typed at a terminal ends before its last line break. The value that a secret has already makes no new version. Running \
                  instances keep the old value until they restart.\n\n\
                  Examples:\n  pass show payment | mainland secret set payment-key --trim\n  mainland secret set payment-key --file payment.key"
)]
pub struct Set {
    /// The secret's name
    name: ResourceName,
    /// Read the value from a file instead of standard input
    #[arg(long, value_name = "FILE")]
    file: Option<std::path::PathBuf>,
    /// Take off the line break that the value ends in
    #[arg(long)]
    trim: bool,
    #[command(flatten)]
    output: Output,
}

impl Secret {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        match self {
            Self::List(command) => command.run(globals).await,
            Self::Set(command) => command.run(globals).await,
            Self::RotateKey(command) => command.run(globals).await,
        }
    }
}

/// As every kind of resource is listed: name and revision beside it.
#[derive(serde::Deserialize)]
struct Listed {
    spec: wire::SecretView,
}

impl List {
    async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = globals.client()?;
        let project = globals.project(&client).await?;
        let path = format!("/v1/projects/{project}/secrets");
        let listed = client.get::<wire::List<Listed>>(&path).await?.items;
        let secrets: Vec<_> = listed.into_iter().map(|listed| listed.spec).collect();
        let now = Timestamp::now();
        let none = format!("{project} has no secrets");
        self.output.list(&secrets, &none, || {
            let row = |secret: &wire::SecretView| {
                [
                    secret.name.to_string(),
                    secret.version.to_string(),
                    age(secret.changed_at, now),
                    secret.changed_by.to_string(),
                    secret.key_id.clone(),
                ]
            };
            table(
                ["NAME", "VERSION", "AGE", "BY", "KEY"],
                secrets.iter().map(row),
            )
        })?;
        Ok(0)
    }
}

impl RotateKey {
    async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = globals.client()?;
        let ring = match self.status {
            true => client.keyring().await?,
            false => client.rotate_keyring().await?,
        };
        self.output.print(&ring, || {
            let row = |key: &wire::RingKey| {
                let current = if key.current { "current" } else { "old" };
                [key.id.clone(), current.to_owned(), key.seals.to_string()]
            };
            table(["KEY", "STATE", "SEALS"], ring.keys.iter().map(row))
        })?;
        Ok(0)
    }
}

impl Set {
    async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = globals.client()?;
        let project = globals.project(&client).await?;
        let bytes = match &self.file {
            Some(path) => {
                let file = std::fs::File::open(path);
                let read = file.and_then(|file| input::read(file, VALUE_MAX_BYTES));
                read.map_err(|error| {
                    Failure::failed(format!("{} can't be read: {error}", path.display()))
                })?
            }
            None => read_stdin()?,
        };
        let bytes = match self.trim {
            true => without_line_break(&bytes),
            false => &bytes,
        };
        if ends_in_line_break(bytes) {
            notice("the value ends in a line break, which is kept; --trim takes it off");
        }
        let value = wire::SecretValue {
            value: encode(bytes)?,
        };
        let view = client.set_secret(&project, &self.name, &value).await?;
        self.output.print(&view, || in_words(&view))?;
        Ok(0)
    }
}

fn in_words(view: &wire::SecretView) -> String {
    if view.unchanged {
        return format!(
            "secret {} has this value already: version {} stays, nothing restarts",
            view.name, view.version
        );
    }
    let mut text = format!("secret {} has version {}", view.name, view.version);
    if view.warnings.is_empty() && view.version > 1 {
        text += "; what runs keeps the old one until it restarts";
    }
    text + &warnings(&view.warnings)
}

/// As it is; at a terminal the last line ends with the line break that hands it over.
fn read_stdin() -> Result<Vec<u8>, Failure> {
    if !std::io::stdin().is_terminal() {
        return Ok(input::read(std::io::stdin(), VALUE_MAX_BYTES)?);
    }
    eprintln!("Type the value, then ctrl-D on a line of its own:");
    let typed = input::read(std::io::stdin(), VALUE_MAX_BYTES)?;
    Ok(without_line_break(&typed).to_vec())
}

/// Without the one line break at the end, of whichever system.
fn without_line_break(bytes: &[u8]) -> &[u8] {
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    bytes.strip_suffix(b"\r").unwrap_or(bytes)
}

pub fn ends_in_line_break(bytes: &[u8]) -> bool {
    bytes.ends_with(b"\n")
}

/// A secret's value as it travels.
pub fn encode(bytes: &[u8]) -> Result<String, Failure> {
    use base64::Engine;
    match bytes.len() {
        0 => Err(Failure::failed("an empty value is no secret")),
        length if length > VALUE_MAX_BYTES => Err(Failure::failed(format!(
            "a secret holds at most {VALUE_MAX_BYTES} bytes"
        ))),
        _ => Ok(base64::engine::general_purpose::STANDARD.encode(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_line_break_at_the_end_is_taken_off() {
        let table: [(&[u8], &[u8]); 6] = [
            (b"x\n", b"x"),
            (b"x\r\n", b"x"),
            (b"x\n\n", b"x\n"),
            (b"x", b"x"),
            (b"\n", b""),
            (b"a\nb\n", b"a\nb"),
        ];
        for (bytes, expected) in table {
            assert_eq!(without_line_break(bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn a_new_value_says_who_goes_on_with_the_old_one_and_what_nothing_needs() {
        let table = [
            (1, &[][..], "secret key has version 1"),
            (
                2,
                &[],
                "secret key has version 2; what runs keeps the old one until it restarts",
            ),
            (
                2,
                &["nothing needs it"],
                "secret key has version 2\n! nothing needs it",
            ),
        ];
        for (version, warnings, expected) in table {
            let view = serde_json::json!({
                "name": "key", "source": model::boundary::SecretSource::Given, "version": version, "key_id": "k", "changed_by": "admin:root",
                "changed_at": Timestamp::UNIX_EPOCH, "warnings": warnings,
            });
            let view: wire::SecretView = serde_json::from_value(view).unwrap();
            assert_eq!(in_words(&view), expected);
            let same = wire::SecretView {
                unchanged: true,
                ..view
            };
            let expected = format!("version {version} stays, nothing restarts");
            assert!(in_words(&same).ends_with(&expected));
        }
    }
}
