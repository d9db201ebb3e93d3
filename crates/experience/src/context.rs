//! Where the server is, which project is meant.

use std::ffi::OsString;
use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use api::client::{Client, Transport};
use model::ids::ProjectName;
use serde::Deserialize;

use crate::deploy;
use crate::failure::Failure;

pub const DEFAULT_API: ([u8; 4], u16) = ([127, 0, 0, 1], 7070);

const WRITTEN_ANEW: &str = "start the server again: it writes it anew";

/// Under which the help of each command lists them.
const HEADING: &str = "Everywhere";

/// Options that every command takes.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Globals {
    /// Where Mainland keeps its data (default: /var/lib/mainland for root, else the user's state directory)
    #[arg(long, global = true, help_heading = HEADING, value_name = "DIR", env = "MAINLAND_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Address of the API (default: the server that `up` runs here, else 127.0.0.1:7070)
    #[arg(long, global = true, help_heading = HEADING, value_name = "ADDR", env = "MAINLAND_API")]
    pub api: Option<SocketAddr>,
    /// Where the gateway listens for requests from outside (default 127.0.0.1:8080); for `up`, and for the agent of an edge
    #[arg(
        long,
        global = true, help_heading = HEADING,
        value_name = "ADDR",
        env = "MAINLAND_GATEWAY",
        hide_short_help = true
    )]
    pub gateway: Option<SocketAddr>,
    /// A token for the API (default: that of the owner of the server that runs here)
    #[arg(
        long,
        global = true, help_heading = HEADING,
        value_name = "TOKEN",
        env = "MAINLAND_TOKEN",
        hide_env_values = true,
        hide = true
    )]
    pub token: Option<String>,
    /// By what the server proves itself before it is shown a token: the authority's certificate, PEM, or a file with it (default: what the server
    /// that runs here left for its owner)
    #[arg(
        long,
        global = true, help_heading = HEADING,
        value_name = "PEM",
        env = "MAINLAND_AUTHORITY",
        hide_env_values = true,
        hide = true
    )]
    pub authority: Option<String>,
    /// The project (default: that of the manifest here, else the only one there is)
    #[arg(
        short,
        long,
        global = true, help_heading = HEADING,
        value_name = "NAME",
        env = "MAINLAND_PROJECT"
    )]
    pub project: Option<String>,
    /// Environment: of the manifest with its overlay, of --project; the project is NAME-ENV
    #[arg(long, global = true, help_heading = HEADING, value_name = "ENV", env = "MAINLAND_ENV")]
    pub env: Option<String>,
    #[arg(skip)]
    client_file: Option<PathBuf>,
    #[arg(skip)]
    prove: Option<Prove>,
    #[arg(skip)]
    killed: Option<Killed>,
}

/// Makes the way to a server that must prove that it is of the cluster with this authority (PEM) before anything is sent to it.
pub type Prove = fn(SocketAddr, &str) -> Result<Transport, String>;

/// The nodes that `up` keeps dead, for it was told to; of the data directory.
pub type Killed = fn(&Path) -> Vec<String>;

/// What a server leaves for the owner's commands.
#[derive(Deserialize)]
struct ClientFile {
    api: SocketAddr,
    token: String,
    /// By which the server proves that it is one. A server of an earlier version did not write it.
    #[serde(default)]
    authority: Option<String>,
}

impl Globals {
    /// With how a server is made to prove what it is.
    pub fn proving(self, prove: Prove) -> Self {
        Self {
            prove: Some(prove),
            ..self
        }
    }

    /// With how to learn which nodes were killed on purpose.
    pub fn knowing_killed(self, killed: Killed) -> Self {
        Self {
            killed: Some(killed),
            ..self
        }
    }

    /// Those that `mainland start` brings back. None where the server that is asked is not the one that runs here.
    pub fn killed_nodes(&self) -> Vec<String> {
        let is_here = self
            .client_file()
            .is_some_and(|file| self.api.is_none_or(|api| api == file.api));
        match (self.killed, self.data_dir()) {
            (Some(killed), Ok(directory)) if is_here => killed(&directory),
            _ => Vec::new(),
        }
    }

    /// # Errors
    ///
    /// Where none is named, and the environment says nothing of this user: no folder that others can write to is taken instead.
    pub fn data_dir(&self) -> Result<PathBuf, Failure> {
        let known = self.data_dir.clone().or_else(default_data_dir);
        known.ok_or_else(|| {
            Failure::usage(
                "where the data is kept is not known: neither XDG_STATE_HOME nor HOME is set [no-data-dir]\n  remedy: name it with --data-dir or MAINLAND_DATA_DIR",
            )
        })
    }

    pub fn api_address(&self) -> SocketAddr {
        self.api.unwrap_or(SocketAddr::from(DEFAULT_API))
    }

    /// The same options, for a server whose address and client file are known.
    pub fn at(&self, api: SocketAddr, client_file: PathBuf) -> Self {
        Self {
            api: Some(api),
            client_file: Some(client_file),
            ..self.clone()
        }
    }

    /// What the server left for this user. A file of another user says nothing: whoever wrote it would say what is shown to whom.
    fn client_file(&self) -> Option<ClientFile> {
        let mut file = std::fs::File::open(self.client_path()?).ok()?;
        let own = rustix::process::geteuid().as_raw();
        if !may_say(file.metadata().ok()?.uid(), own) {
            return None;
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn client_path(&self) -> Option<PathBuf> {
        let known = self.client_file.clone();
        known.or_else(|| Some(self.data_dir().ok()?.join("client.json")))
    }

    /// Whose cloud it is, where there is one that this user may not ask.
    fn anothers(&self) -> Option<Failure> {
        let data = self.data_dir().ok()?;
        let path = data.join("client.json");
        let owner = path.metadata().ok()?.uid();
        let own = rustix::process::geteuid().as_raw();
        let is_denied = std::fs::File::open(&path)
            .is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied);
        (is_denied || !may_say(owner, own)).then(|| of_another(&data, owner))
    }

    /// A client; nothing is dialled yet.
    pub fn client(&self) -> Result<Client, Failure> {
        let known = self.client_file();
        let says_nothing = self.api.is_none() && self.token.is_none();
        if let Some(failure) = says_nothing.then(|| self.anothers()).flatten() {
            return Err(failure);
        }
        let address = self
            .api
            .or(known.as_ref().map(|known| known.api))
            .unwrap_or(SocketAddr::from(DEFAULT_API));
        if !address.ip().is_loopback() {
            return Err(Failure::usage(format!(
                "{address} is not on this machine: contexts for servers elsewhere are not part of this version"
            )));
        }
        // The token of one server is not shown to another.
        let own = known.filter(|known| known.api == address);
        let transport = self.way_to(address, own.as_ref())?;
        let is_anybody = self.prove.is_some() && matches!(transport, Transport::Tcp(_));
        let token = self.token.clone().or(own.map(|own| own.token));
        Ok(match token {
            None if is_anybody => Client::only_asking(transport),
            token => Client::new(transport, token),
        })
    }

    /// To a server that must prove what it is, where it is known by what. A token is shown to no other: whoever holds the port would read it.
    fn way_to(&self, address: SocketAddr, own: Option<&ClientFile>) -> Result<Transport, Failure> {
        let given = self.authority.as_deref().map(authority).transpose()?;
        let left = own.and_then(|own| own.authority.clone());
        match (given.as_ref().or(left.as_ref()), self.prove) {
            (Some(authority), Some(prove)) => prove(address, authority).map_err(|cause| {
                let (what, remedy) = match given.is_some() {
                    true => ("MAINLAND_AUTHORITY".to_owned(), "it takes a certificate as PEM, or a file with it; `jq -r .authority client.json` prints that of a server"),
                    false => (self.client_file_named(), WRITTEN_ANEW),
                };
                Failure::failed(format!("{what} can't be used: {cause}\n  remedy: {remedy}"))
            }),
            (None, Some(_)) if self.token.is_some() && own.is_none() => Err(Failure::usage(format!(
                "the token is not shown to {address}: nothing proves that a server of yours is there [unproven]\n  remedy: set MAINLAND_AUTHORITY to its authority's certificate (`jq -r .authority client.json` prints it to the server's owner), or name its data directory with --data-dir"
            ))),
            // What `up` itself has started it knows by its process.
            (None, Some(_)) if own.is_some() && self.client_file.is_none() => {
                let file = self.client_file_named();
                Err(Failure::failed(format!(
                    "no token is shown to {address}: {file} is of an earlier version, and does not say by what its server proves itself [unproven]\n  remedy: {WRITTEN_ANEW}"
                )))
            }
            _ => Ok(Transport::Tcp(address)),
        }
    }

    fn client_file_named(&self) -> String {
        let path = self.client_path().unwrap_or_default();
        path.display().to_string()
    }

    /// The project that is meant: named, or the manifest's here, or the only one there is.
    pub async fn project(&self, client: &Client) -> Result<ProjectName, Failure> {
        if let Some(project) = self.asked_project()? {
            return Ok(project);
        }
        if let Some(project) = self.named_project() {
            return Ok(project);
        }
        if let Some(environment) = &self.env {
            let Some(manifest) = deploy::find_manifest(None)? else {
                return Err(Failure::usage(format!(
                    "environment {environment} of which project? There is no {} here; --project names it",
                    deploy::MANIFEST
                )));
            };
            return deploy::project_of(&manifest, Some(environment));
        }
        let mut projects = client.projects().await?.items;
        match (projects.pop(), projects.len()) {
            (Some(only), 0) => Ok(only),
            (None, _) => Err(Failure::failed(
                "nothing is deployed yet [no-project]\n  remedy: `mainland apply -f FILE` deploys a manifest",
            )),
            (Some(last), _) => {
                projects.push(last);
                let names: Vec<_> = projects.iter().map(ProjectName::as_str).collect();
                Err(Failure::usage(format!(
                    "which project? There are {}\n  remedy: name it with -p NAME or MAINLAND_PROJECT, or go where its {} is",
                    names.join(", "),
                    deploy::MANIFEST
                )))
            }
        }
    }

    /// What --project names, with --env that environment of it.
    pub fn asked_project(&self) -> Result<Option<ProjectName>, Failure> {
        let Some(name) = &self.project else {
            return Ok(None);
        };
        let name = match &self.env {
            Some(environment) => format!("{name}-{environment}"),
            None => name.clone(),
        };
        let project = ProjectName::new(name.as_str());
        let project = project.map_err(|error| Failure::usage(format!("--project: {error}")))?;
        Ok(Some(project))
    }

    /// The project that is named here: by option, or by the manifest.
    pub fn named_project(&self) -> Option<ProjectName> {
        if self.project.is_some() {
            return self.asked_project().ok()?;
        }
        let manifest = deploy::find_manifest(None).ok()??;
        deploy::project_of(&manifest, self.env.as_deref()).ok()
    }

    /// What a command that is shown must have besides, so that it acts on what this one acts on: ` -p shop --env staging`, or nothing.
    pub fn aim(&self) -> String {
        let part = |option: &str, value: &Option<String>| {
            let value = value.as_ref();
            value.map_or(String::new(), |value| format!(" {option} {value}"))
        };
        part("-p", &self.project) + &part("--env", &self.env)
    }

    /// The sockets of nodes that keep their data here: for when the servers are down. None where the server of another cloud is asked for: what
    /// runs here is no answer then.
    pub fn node_sockets(&self) -> Vec<PathBuf> {
        let own = self.client_file().map(|known| known.api);
        if self.api.is_some() && self.api != own {
            return Vec::new();
        }
        let Ok(data) = self.data_dir() else {
            return Vec::new();
        };
        let children = std::fs::read_dir(data.join("nodes"))
            .into_iter()
            .flatten()
            .flatten();
        let candidates = std::iter::once(data).chain(children.map(|child| child.path()));
        candidates
            .map(|directory| directory.join("node.sock"))
            .filter(|socket| socket.exists())
            .collect()
    }
}

/// PEM, or what a file holds: PEM, or the client file that a server leaves.
fn authority(given: &str) -> Result<String, Failure> {
    if given.contains("-----BEGIN") {
        return Ok(given.to_owned());
    }
    let text = std::fs::read_to_string(given).map_err(|error| {
        Failure::usage(format!(
            "MAINLAND_AUTHORITY names {given}, which can't be read: {error}"
        ))
    })?;
    let file: Option<ClientFile> = serde_json::from_str(&text).ok();
    Ok(file.and_then(|file| file.authority).unwrap_or(text))
}

fn of_another(data: &Path, owner: u32) -> Failure {
    Failure::failed(format!(
        "there is a cloud in {}, and it belongs to {} [forbidden]\n  remedy: run this as that user, or pass a token in MAINLAND_TOKEN, the address with --api, and the authority's certificate in MAINLAND_AUTHORITY",
        data.display(),
        user_name(owner)
    ))
}

/// As the machine's own list has it.
pub fn user_name(uid: u32) -> String {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let named = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| format!("{name} (uid {uid})"))
    });
    named.unwrap_or_else(|| format!("uid {uid}"))
}

/// The port of the gateway that `up` runs here.
pub fn gateway_port(globals: &Globals) -> u16 {
    #[derive(Deserialize)]
    struct State {
        gateway: SocketAddr,
    }
    let read = || -> Option<State> {
        let state = globals.data_dir().ok()?.join("up.json");
        serde_json::from_slice(&std::fs::read(state).ok()?).ok()
    };
    read().map_or(8080, |state| state.gateway.port())
}

/// Whether what a user with this uid wrote decides for another to whom a token is shown. Root decides for itself whom it believes.
fn may_say(owner: u32, own: u32) -> bool {
    owner == own || owner == 0 || own == 0
}

fn default_data_dir() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from("/var/lib/mainland"));
    }
    let of = |variable: &str| std::env::var_os(variable);
    user_data_dir(of("XDG_STATE_HOME"), of("HOME"))
}

/// By what the environment says of the user. What is no absolute path is ignored, as the XDG specification has it.
fn user_data_dir(state: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let absolute = |path: OsString| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
    let state = state.and_then(absolute);
    let home = home.and_then(absolute);
    let state = state.or_else(|| Some(home?.join(".local/state")))?;
    Some(state.join("mainland"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_cloud_it_is_goes_by_name() {
        let failure = of_another(Path::new("/x"), 0);
        assert!(
            failure
                .message
                .contains("cloud in /x, and it belongs to root (uid 0)")
        );
        assert_eq!(user_name(4_000_000_000), "uid 4000000000");
    }

    #[test]
    fn a_token_is_shown_to_nobody_unproven() {
        let data = tempfile::tempdir().unwrap();
        let own = r#"{"api":"127.0.0.1:7070","token":"t","authority":"-----BEGIN own"}"#;
        let file = data.path().join("client.json");
        std::fs::write(&file, own).unwrap();
        let prove: Prove = |address, authority| match authority {
            "-----BEGIN own" | "-----BEGIN given" => {
                Ok(Transport::Unix(address.to_string().into()))
            }
            other => Err(format!("`{other}` is no certificate")),
        };
        let (elsewhere, here) = ("127.0.0.1:9999", "127.0.0.1:7070");
        let file = file.to_str().unwrap();
        let table = [
            // Nobody is shown anything that must not be seen.
            (elsewhere, None, None, Ok("http://127.0.0.1:9999")),
            (elsewhere, Some("t"), None, Err("[unproven]")),
            (here, Some("t"), None, Ok("127.0.0.1:7070")),
            (here, None, None, Ok("127.0.0.1:7070")),
            (
                elsewhere,
                Some("t"),
                Some("-----BEGIN given"),
                Ok("127.0.0.1:9999"),
            ),
            (elsewhere, Some("t"), Some(file), Ok("127.0.0.1:9999")),
            (
                elsewhere,
                Some("t"),
                Some("-----BEGIN x"),
                Err("MAINLAND_AUTHORITY can't be used"),
            ),
            (elsewhere, Some("t"), Some("/no/such"), Err("can't be read")),
        ];
        for (api, token, authority, expect) in table {
            let globals = Globals {
                data_dir: Some(data.path().to_owned()),
                api: Some(api.parse().unwrap()),
                token: token.map(str::to_owned),
                authority: authority.map(str::to_owned),
                ..Globals::default()
            };
            let case = format!("{api} {token:?} {authority:?}");
            match (globals.proving(prove).client(), expect) {
                (Ok(client), Ok(way)) => assert_eq!(client.transport().to_string(), way, "{case}"),
                (Err(failure), Err(word)) => {
                    assert!(
                        failure.message.contains(word),
                        "{case}: {}",
                        failure.message
                    );
                }
                (Ok(_), Err(word)) => panic!("{case}: not {word}"),
                (Err(failure), Ok(_)) => panic!("{case}: {}", failure.message),
            }
        }
    }

    /// A server of an earlier version left no more than a token: to whoever holds its port now that is not shown.
    #[test]
    fn what_an_earlier_version_left_proves_nothing() {
        let data = tempfile::tempdir().unwrap();
        let file = data.path().join("client.json");
        std::fs::write(&file, r#"{"api":"127.0.0.1:7070","token":"t"}"#).unwrap();
        let prove: Prove = |address, _| Ok(Transport::Unix(address.to_string().into()));
        for token in [None, Some("mine".to_owned())] {
            let globals = Globals {
                data_dir: Some(data.path().to_owned()),
                token,
                ..Globals::default()
            };
            let refused = globals.clone().proving(prove).client().map(drop);
            let message = refused.unwrap_err().message;
            for part in [
                "[unproven]",
                "of an earlier version",
                "start the server again",
            ] {
                assert!(message.contains(part), "{message}");
            }
            let given = Globals {
                authority: Some("-----BEGIN given".to_owned()),
                ..globals.clone()
            };
            assert!(given.proving(prove).client().is_ok());
            let of_up = globals.at("127.0.0.1:7070".parse().unwrap(), file.clone());
            assert!(of_up.proving(prove).client().is_ok());
        }
    }

    /// Where nothing is known of who answers, it is asked and told nothing.
    #[tokio::test]
    async fn nothing_is_sent_to_whoever_holds_the_port() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let api = listener.local_addr().unwrap();
        let heard = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut heard = Vec::new();
            let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut heard).await;
            heard
        });
        let data = tempfile::tempdir().unwrap();
        let prove: Prove = |_, _| Err("there is nothing to prove it by".to_owned());
        let globals = Globals {
            data_dir: Some(data.path().to_owned()),
            api: Some(api),
            ..Globals::default()
        };
        let client = globals.proving(prove).client().unwrap();
        let (project, name) = ("shop".parse().unwrap(), "key".parse().unwrap());
        let value = "a-secret-value".to_owned();
        let sent = client
            .set_secret(&project, &name, &api::wire::SecretValue { value })
            .await;
        let failure = Failure::from(sent.map(drop).unwrap_err());
        assert!(failure.is("unproven"), "{}", failure.message);
        drop(client);
        let heard = heard.await.unwrap();
        assert!(!heard.windows(14).any(|part| part == b"a-secret-value"));
    }

    #[test]
    fn no_folder_that_others_write_to_is_a_users_own() {
        let path = |text: &str| Some(OsString::from(text));
        for (state, home, expect) in [
            (None, path("/home/u"), Some("/home/u/.local/state/mainland")),
            (path("/s"), path("/home/u"), Some("/s/mainland")),
            (path("/s"), None, Some("/s/mainland")),
            (
                path(""),
                path("/home/u"),
                Some("/home/u/.local/state/mainland"),
            ),
            (path("state"), path("home"), None),
            (path(""), path(""), None),
            (None, None, None),
        ] {
            let case = format!("{state:?} {home:?}");
            let known = user_data_dir(state, home);
            assert_eq!(known.as_deref(), expect.map(Path::new), "{case}");
        }
    }

    #[test]
    fn a_file_of_another_user_says_nothing() {
        for (owner, own, expect) in [
            (1000, 1000, true),
            (0, 1000, true),
            (1001, 1000, false),
            (65_534, 1000, false),
            (1000, 0, true),
        ] {
            assert_eq!(may_say(owner, own), expect, "of {owner} to {own}");
        }
    }

    #[test]
    fn the_nodes_here_answer_for_the_server_here_alone() {
        let data = tempfile::tempdir().unwrap();
        let node = data.path().join("nodes/a");
        std::fs::create_dir_all(&node).unwrap();
        std::fs::write(node.join("node.sock"), "").unwrap();
        let file = r#"{"api":"127.0.0.1:7070","token":"t"}"#;
        std::fs::write(data.path().join("client.json"), file).unwrap();
        let asked = |api: Option<&str>| {
            let globals = Globals {
                data_dir: Some(data.path().to_owned()),
                api: api.map(|api| api.parse().unwrap()),
                ..Globals::default()
            };
            globals.node_sockets().len()
        };
        assert_eq!(asked(None), 1);
        assert_eq!(asked(Some("127.0.0.1:7070")), 1, "it is the one here");
        assert_eq!(asked(Some("127.0.0.1:1")), 0);
    }

    #[test]
    fn commands_that_are_shown_act_on_the_same() {
        let globals = |project: Option<&str>, env: Option<&str>| Globals {
            project: project.map(str::to_owned),
            env: env.map(str::to_owned),
            ..Globals::default()
        };
        assert_eq!(globals(None, None).aim(), "");
        assert_eq!(globals(None, Some("staging")).aim(), " --env staging");
        assert_eq!(
            globals(Some("shop"), Some("staging")).aim(),
            " -p shop --env staging"
        );
    }
}
