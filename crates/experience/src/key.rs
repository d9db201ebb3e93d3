//! `key`: a project's small durable values.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use api::client::{Client, Error, Unless};
use api::wire::KeyView;
use model::ids::ProjectName;

use crate::Globals;
use crate::failure::Failure;
use crate::input;
use crate::output::{Output, shown, table};

const VALUE_MAX_BYTES: usize = 64 << 10;

#[derive(Debug, clap::Subcommand)]
pub enum Key {
    /// Print a key's value
    Get(Get),
    /// Give a key a value
    Put(Put),
    /// List keys, without their values
    List(List),
    /// Remove a key
    Delete(Delete),
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "The value is printed as it is, without a line's end.\n\nExample:\n  mainland key get flags/dark-mode"
)]
pub struct Get {
    /// The key's name
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    name: String,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "A value has at most 64 KiB. Whoever writes last wins, unless --create or --if-revision says otherwise.\n\n\
                  Examples:\n  mainland key put flags/dark-mode on\n  mainland key put config/prices --file prices.json\n  \
                  mainland key put leader worker-3 --create"
)]
pub struct Put {
    /// The key's name, such as flags/dark-mode
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    name: String,
    /// The value; without it and --file, standard input is read
    value: Option<String>,
    /// Read the value from a file
    #[arg(long, value_name = "FILE", conflicts_with = "value")]
    file: Option<PathBuf>,
    /// Fail if the key is there already
    #[arg(long, conflicts_with = "if_revision")]
    create: bool,
    /// Fail if the key was changed since this revision
    #[arg(long, value_name = "REVISION")]
    if_revision: Option<String>,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  mainland key list\n  mainland key list flags/ -o json")]
pub struct List {
    /// Only names that begin with this
    #[arg(default_value = "")]
    prefix: String,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mainland key delete flags/dark-mode")]
pub struct Delete {
    /// The key's name
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    name: String,
    /// Fail if the key was changed since this revision
    #[arg(long, value_name = "REVISION")]
    if_revision: Option<String>,
    #[command(flatten)]
    output: Output,
}

impl Key {
    pub async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        match self {
            Self::Get(command) => command.run(globals).await,
            Self::Put(command) => command.run(globals).await,
            Self::List(command) => command.run(globals).await,
            Self::Delete(command) => command.run(globals).await,
        }
    }
}

impl Get {
    async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = globals.client()?;
        let project = globals.project(&client).await?;
        let value = match client.key(&project, &self.name).await {
            Ok((value, _)) => value,
            Err(error) => return Err(refused(&client, &project, &self.name, error).await),
        };
        let mut stdout = std::io::stdout().lock();
        // The very bytes for a program or a file; on a terminal nothing of it acts.
        match stdout.is_terminal() {
            true => stdout.write_all(shown(&String::from_utf8_lossy(&value)).as_bytes())?,
            false => stdout.write_all(&value)?,
        }
        stdout.flush()?;
        Ok(0)
    }
}

impl Put {
    async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = globals.client()?;
        let project = globals.project(&client).await?;
        let unless = match self.create {
            true => Unless::Present,
            false => unless(self.if_revision.as_deref()),
        };
        let value = value(self.value, self.file)?;
        let written = client.put_key(&project, &self.name, value, &unless).await?;
        self.output.print(&written, || {
            format!("{} is at revision {}", self.name, written.revision)
        })?;
        Ok(0)
    }
}

impl List {
    async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = globals.client()?;
        let project = globals.project(&client).await?;
        let keys = client.keys(&project, &self.prefix).await?;
        let none = match self.prefix.as_str() {
            "" => format!("{project} has no keys"),
            prefix => format!("{project} has no keys that begin with {prefix}"),
        };
        self.output.list(&keys, &none, || {
            let row =
                |key: &KeyView| [key.name.clone(), key.size.to_string(), key.revision.clone()];
            table(["NAME", "SIZE", "REVISION"], keys.iter().map(row))
        })?;
        Ok(0)
    }
}

impl Delete {
    async fn run(self, globals: &Globals) -> Result<u8, Failure> {
        let client = globals.client()?;
        let project = globals.project(&client).await?;
        let unless = unless(self.if_revision.as_deref());
        match client.delete_key(&project, &self.name, &unless).await {
            Ok(written) => {
                self.output
                    .print(&written, || format!("{} is deleted", self.name))?;
                Ok(0)
            }
            Err(error) => Err(refused(&client, &project, &self.name, error).await),
        }
    }
}

/// Of a key that is not there, which one was probably meant.
async fn refused(client: &Client, project: &ProjectName, name: &str, error: Error) -> Failure {
    let is_missing = error.code() == Some("not-found");
    match client.keys(project, "").await {
        Ok(keys) if is_missing => Failure::missing(
            format!("{project} has no key `{name}`"),
            name,
            keys.iter().map(|key| key.name.as_str()),
            "`mainland key list` lists them",
        ),
        _ => error.into(),
    }
}

fn unless(revision: Option<&str>) -> Unless {
    revision.map_or(Unless::Never, |revision| {
        Unless::Changed(revision.to_owned())
    })
}

fn value(given: Option<String>, file: Option<PathBuf>) -> Result<Vec<u8>, Failure> {
    let bytes = match (given, file) {
        (Some(text), _) => text.into_bytes(),
        (None, Some(path)) => {
            let file = std::fs::File::open(&path);
            let read = file.and_then(|file| input::read(file, VALUE_MAX_BYTES));
            read.map_err(|error| {
                Failure::failed(format!("{} can't be read: {error}", path.display()))
            })?
        }
        (None, None) => {
            if std::io::stdin().is_terminal() {
                eprintln!("Type the value, then ctrl-D:");
            }
            input::read(std::io::stdin(), VALUE_MAX_BYTES)?
        }
    };
    if bytes.len() > VALUE_MAX_BYTES {
        return Err(Failure::failed(format!(
            "a key's value has at most {VALUE_MAX_BYTES} bytes"
        )));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_taken_as_it_is_and_bounded() {
        assert_eq!(value(Some("on".to_owned()), None).unwrap(), b"on");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("value");
        for (length, fits) in [
            (0, true),
            (VALUE_MAX_BYTES, true),
            (VALUE_MAX_BYTES + 1, false),
        ] {
            std::fs::write(&path, vec![b'\n'; length]).unwrap();
            let read = value(None, Some(path.clone()));
            assert_eq!(read.ok().map(|bytes| bytes.len()), fits.then_some(length));
        }
        assert!(value(None, Some(directory.path().join("none"))).is_err());
    }
}
