//! The shim's socket: a few agents, one after the other or at once. A slow one is dropped; it comes again and reads the state.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use super::protocol::{LINE_MAX_BYTES, Notice, Request};

/// Connections at once: an agent, its successor, and a person looking.
const CLIENTS_MAX: usize = 4;
/// Most that is taken of one at a time: more than its socket holds.
const INPUT_MAX_BYTES: usize = 512 << 10;

pub(super) struct Client {
    pub(super) stream: UnixStream,
    input: Vec<u8>,
    gone: bool,
}

pub(super) struct Clients {
    pub(super) listener: UnixListener,
    pub(super) clients: Vec<Client>,
}

impl Clients {
    pub(super) fn listen(path: &str) -> std::io::Result<Self> {
        crate::instance::remove_if_there(path.as_ref())?;
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            clients: Vec::new(),
        })
    }

    /// Takes all that is waiting to connect; the oldest goes when there are too many.
    pub(super) fn accept(&mut self, hello: &Notice) {
        while let Ok((stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            if self.clients.len() == CLIENTS_MAX {
                self.clients.remove(0);
            }
            let mut client = Client {
                stream,
                input: Vec::new(),
                gone: false,
            };
            client.tell(hello);
            self.clients.push(client);
        }
    }

    /// What all clients ask for, in order.
    pub(super) fn requests(&mut self) -> Vec<Request> {
        let requests = self.clients.iter_mut().flat_map(Client::requests).collect();
        self.clients.retain(|client| !client.gone);
        requests
    }

    pub(super) fn tell(&mut self, notice: &Notice) {
        for client in &mut self.clients {
            client.tell(notice);
        }
        self.clients.retain(|client| !client.gone);
    }
}

impl Client {
    fn tell(&mut self, notice: &Notice) {
        let Ok(mut line) = serde_json::to_vec(notice) else {
            return;
        };
        line.push(b'\n');
        // The buffer of a socket holds hundreds of notices: one that is full belongs to a client that does not read.
        self.gone |= self.stream.write_all(&line).is_err();
    }

    fn requests(&mut self) -> Vec<Request> {
        let mut chunk = [0; 4096];
        // All that waits: what was said last is worth more than what was said first.
        while self.input.len() < INPUT_MAX_BYTES {
            match self.stream.read(&mut chunk) {
                Ok(0) => self.gone = true,
                Ok(count) => {
                    self.input.extend_from_slice(&chunk[..count]);
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => self.gone = true,
            }
            break;
        }
        let whole = self
            .input
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |last| last + 1);
        let lines: Vec<u8> = self.input.drain(..whole).collect();
        self.gone |= self.input.len() > LINE_MAX_BYTES;
        let lines = lines
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        lines.filter_map(|line| self.parse(line)).collect()
    }

    fn parse(&mut self, line: &[u8]) -> Option<Request> {
        match serde_json::from_slice(line) {
            Ok(request) => Some(request),
            Err(error) => {
                self.tell(&Notice::Refused {
                    error: error.to_string(),
                });
                None
            }
        }
    }
}
