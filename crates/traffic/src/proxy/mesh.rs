//! What one proxy says to another, and what it makes of the answer.

use http::uri::{Authority, Scheme};
use http::{HeaderValue, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::{Request, Response};

use super::body::RequestBody;
use super::callee;
use super::failure::{Failure, chain};
use super::search::Chosen;
use super::view::Target;
use super::wire;

/// The answer of the instance; what the other proxy says of a request that did not get there becomes a failure.
pub async fn send(
    sender: &mut SendRequest<RequestBody>,
    request: Request<RequestBody>,
) -> Result<Response<Incoming>, Failure> {
    let response = sender
        .try_send_request(request)
        .await
        .map_err(|mut error| {
            let begun = error.take_message().is_none() && !surely_unprocessed(error.error());
            let reason = chain(error.error());
            if begun {
                Failure::broken(reason)
            } else {
                // Connections end in the midst of all that is well: with a certificate, or to make room. That is no fault of the copy's.
                Failure::not_begun(reason)
            }
        })?;
    match callee::failure_in(&response) {
        Some(failure) => Err(failure),
        None => Ok(response),
    }
}

/// Which instance the peer shall hand it to.
pub fn address_to<B>(request: &mut Request<B>, chosen: &Chosen, target: &Target) {
    let headers = request.headers_mut();
    headers.insert(wire::SERVICE, chosen.asked.destination.header.clone());
    if chosen.insists {
        headers.insert(wire::INSIST, HeaderValue::from_static("1"));
    }
    headers.insert(wire::INSTANCE, target.instance_header.clone());
    headers.insert(wire::EPOCH, target.epoch_header.clone());
}

/// HTTP/2 wants scheme and authority; the host that the client asked for travels in its own header, untouched.
pub fn uri(uri: &Uri) -> Uri {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(Authority::from_static("mesh"));
    parts.path_and_query = uri.path_and_query().cloned();
    if parts.path_and_query.is_none() {
        parts.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
    }
    Uri::from_parts(parts).unwrap_or_default()
}

/// The peer said that it did not look at the stream: REFUSED_STREAM, or a GOAWAY that names an earlier one as the last.
fn surely_unprocessed(error: &hyper::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(h2) = current.downcast_ref::<h2::Error>() {
            return h2.reason() == Some(h2::Reason::REFUSED_STREAM)
                || (h2.is_go_away()
                    && h2.is_remote()
                    && h2.reason() == Some(h2::Reason::NO_ERROR));
        }
        cause = current.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use hyper::client::conn::http2;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;
    use crate::retry::Stage;

    const NO_SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    /// No error; no stream was looked at.
    const GOAWAY: &[u8] = &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    const REFUSED_STREAM: &[u8] = &[0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 7];
    const INTERNAL_ERROR: &[u8] = &[0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 2];
    const PREFACE_BYTES: usize = 24;
    const HEADERS: u8 = 1;

    /// Answers the first request by these bytes, and reads on.
    async fn peer(mut stream: DuplexStream, answer: &[u8]) {
        stream.read_exact(&mut [0; PREFACE_BYTES]).await.unwrap();
        stream.write_all(NO_SETTINGS).await.unwrap();
        let mut head = [0; 9];
        while stream.read_exact(&mut head).await.is_ok() {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            stream.read_exact(&mut payload).await.unwrap();
            if head[3] == HEADERS {
                stream.write_all(answer).await.unwrap();
                if answer.is_empty() {
                    return;
                }
            }
        }
    }

    fn request() -> Request<RequestBody> {
        let request = Request::post("http://mesh/");
        request.body(RequestBody::Empty).unwrap()
    }

    #[tokio::test]
    async fn what_a_peer_did_not_look_at_has_not_begun() {
        for (answer, begun) in [
            (GOAWAY, false),
            (REFUSED_STREAM, false),
            (INTERNAL_ERROR, true),
            (&[], true),
        ] {
            let (ours, theirs) = tokio::io::duplex(1 << 16);
            tokio::spawn(async move { peer(theirs, answer).await });
            let executor = TokioExecutor::new();
            let handshake = http2::handshake(executor, TokioIo::new(ours)).await;
            let (mut sender, connection) = handshake.unwrap();
            let connection = tokio::spawn(connection);
            let failure = send(&mut sender, request()).await.unwrap_err();
            let reason = match &failure {
                Failure::Try { reason, .. } | Failure::Refused { reason } => reason.clone(),
            };
            let expected = match begun {
                true => Failure::broken(reason),
                false => Failure::not_begun(reason),
            };
            assert_eq!(failure, expected);
            if answer == GOAWAY {
                // What finds the connection closed comes back as it was.
                let failure = send(&mut sender, request()).await.unwrap_err();
                let not_begun = Stage::NotBegun;
                assert!(matches!(failure, Failure::Try { stage, .. } if stage == not_begun));
                let _ = connection.await;
            }
        }
    }
}
