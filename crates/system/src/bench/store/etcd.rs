//! A single etcd node, and how to put a key in its own protocol.
//!
//! A unary gRPC call is one HTTP/2 POST with a length in front of the message and the status in the trailers, and a put is two
//! fields of bytes. That is little enough to be written out, where a gRPC library would have to be built for it.
//! <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use http::Request;

use crate::bench::Place;
use crate::bench::peers::{ETCD, Running, configure, free_addresses};
use crate::bench::table::Report;
use crate::bench::wire::{self, Answer, Target};

const START_TIMEOUT: Duration = Duration::from_secs(20);

pub(super) struct Etcd {
    running: Running,
    target: Rc<dyn Target>,
}

impl Etcd {
    /// `None`: it is not installed, and that was said.
    pub(super) fn start(place: &Place, folder: &Path, report: &mut Report) -> Result<Option<Self>> {
        let Some(etcd) = ETCD.find(&place.root) else {
            report.fact("etcd", "missing");
            return Ok(None);
        };
        report.fact("etcd", etcd.version);
        let [address, peers] = free_addresses()?;
        let values = [
            ("DATA", folder.join("etcd").display().to_string()),
            ("CLIENTS", address.to_string()),
            ("PEERS", peers.to_string()),
        ];
        let configuration = configure(&place.root, "etcd.yaml", &values, folder)?;
        let mut command = Command::new(etcd.path);
        command.arg("--config-file").arg(configuration);
        let mut running = Running::start("etcd", &mut command, folder)?;
        let target = Rc::new(Put { address });
        running.until_ready(START_TIMEOUT, || {
            wire::try_once(&*target).map_err(|error| format!("{error:#}"))
        })?;
        Ok(Some(Self { running, target }))
    }

    pub(super) fn pid(&self) -> u32 {
        self.running.pid()
    }

    pub(super) fn target(&self) -> Rc<dyn Target> {
        self.target.clone()
    }
}

struct Put {
    address: SocketAddr,
}

impl Target for Put {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn put(&self, key: &str, value: &Bytes) -> Result<(Request<()>, Bytes)> {
        let request = Request::post("http://etcd/etcdserverpb.KV/Put")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        Ok((request, message(key.as_bytes(), value)))
    }

    fn check(&self, answer: &Answer) -> Result<()> {
        // An error without a body has its status among the headers.
        let trailers = answer.trailers.as_ref().unwrap_or(&answer.head.headers);
        let status = trailers.get("grpc-status");
        ensure!(
            status.is_some_and(|status| status == "0"),
            "etcd answered {status:?}: {:?}",
            trailers.get("grpc-message")
        );
        Ok(())
    }
}

/// `PutRequest { key = 1, value = 2 }`, behind a byte for "not compressed" and the length.
fn message(key: &[u8], value: &[u8]) -> Bytes {
    const FRAME_BYTES: usize = 5;
    const LENGTH_DELIMITED: u8 = 2;
    let mut message = BytesMut::with_capacity(FRAME_BYTES + key.len() + value.len() + 12);
    message.put_bytes(0, FRAME_BYTES);
    for (field, bytes) in [(1, key), (2, value)] {
        message.put_u8(field << 3 | LENGTH_DELIMITED);
        put_varint(&mut message, bytes.len());
        message.extend_from_slice(bytes);
    }
    let length = u32::try_from(message.len() - FRAME_BYTES).expect("a small message");
    message[1..FRAME_BYTES].copy_from_slice(&length.to_be_bytes());
    message.freeze()
}

fn put_varint(message: &mut BytesMut, mut number: usize) {
    while number > 0x7f {
        message.put_u8((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    message.put_u8(number as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_put_is_framed_as_the_protocol_says() {
        let value = [7; 200];
        let message = message(b"key", &value);
        assert_eq!(message[..5], [0, 0, 0, 0, 5 + 203]);
        assert_eq!(message[5..10], *b"\x0a\x03key");
        assert_eq!(message[10..13], [0x12, 0xc8, 0x01]);
        assert_eq!(message[13..], value);
    }
}
