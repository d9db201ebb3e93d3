//! One request as handlers see it: who asks, for what, with which body; and the shapes of answers.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use api::operations::Operation;
use api::problem::{self, Problem};
use api::strict::{self, JsonSchema, UnknownKey};
use api::wire::Kind;
use axum::body::{Body, HttpBody};
use axum::extract::{Query, RawPathParams};
use axum::response::Response;
use axum::{RequestExt, http::Request};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use model::boundary::{KeyFingerprint, Principal};
use model::ids::{NodeName, ProjectName, ResourceId, ResourceName};
use serde::Serialize;
use serde::de::DeserializeOwned;
use store::Revision;
use tokio::time::Instant;

use crate::dispatch::Peer;
use crate::world::Stored;

/// A body has this long, and in addition as long as its bytes take at [`BODY_MIN_RATE`].
const BODY_GRACE: Duration = Duration::from_secs(10);
/// Bytes per second below which a body is given up: a slow modem's.
const BODY_MIN_RATE: u32 = 4 << 10;

pub type Answer = Result<Response, Problem>;

/// A request, taken apart.
pub struct Call {
    pub principal: Principal,
    /// What the path's pattern names, decoded.
    segments: RawPathParams,
    pub query: BTreeMap<String, String>,
    /// Longest body of the operation, in bytes.
    body_max_bytes: usize,
    /// With its body, its upgrade and what the acceptor knows of the peer.
    pub request: Request<Body>,
}

impl Call {
    pub async fn new(
        principal: Principal,
        operation: &Operation,
        mut request: Request<Body>,
    ) -> Result<Self, Problem> {
        let segments: RawPathParams = request
            .extract_parts()
            .await
            .map_err(|error| Problem::invalid(format!("the path can't be read: {error}")))?;
        let query = Query::<BTreeMap<String, String>>::try_from_uri(request.uri())
            .map_err(|error| Problem::invalid(format!("the query can't be read: {error}")))?;
        Ok(Self {
            principal,
            segments,
            query: query.0,
            body_max_bytes: operation.body_max_bytes,
            request,
        })
    }

    pub fn headers(&self) -> &HeaderMap {
        self.request.headers()
    }

    /// The segment of the path that has this name. A path that spells a `{kind}` out names things of it as that kind does.
    pub fn segment(&self, name: &str) -> Option<&str> {
        let of_path = |name: &str| {
            let mut segments = self.segments.iter();
            segments.find_map(|(known, value)| (known == name).then_some(value))
        };
        match (self.request.extensions().get::<Kind>(), name) {
            (Some(kind), "kind") => Some(kind.as_str()),
            (Some(_), "name") => of_path("name").or_else(|| of_path("service")),
            _ => of_path(name),
        }
    }

    /// As [`segment`](Call::segment); empty if there is none.
    pub fn text(&self, name: &str) -> &str {
        self.segment(name).unwrap_or_default()
    }

    /// A segment of the path, read as what it must be.
    pub fn parameter<T: FromStr>(&self, name: &str) -> Result<T, Problem>
    where
        T::Err: std::fmt::Display,
    {
        self.text(name)
            .parse()
            .map_err(|error| Problem::invalid(format!("{error}")))
    }

    pub fn project(&self) -> Result<ProjectName, Problem> {
        self.parameter("project")
    }

    pub fn node(&self) -> Result<NodeName, Problem> {
        self.parameter("node")
    }

    /// `{project}` and `{service}` or another segment that names a resource.
    pub fn resource(&self, name: &str) -> Result<ResourceId, Problem> {
        let name: ResourceName = self.parameter(name)?;
        Ok(ResourceId::new(self.project()?, name))
    }

    /// A parameter of the query; the default where it is absent.
    pub fn asks<T: FromStr>(&self, name: &str, default: T) -> Result<T, Problem> {
        match self.query.get(name) {
            None => Ok(default),
            Some(text) => text
                .parse()
                .map_err(|_| Problem::invalid(format!("`{name}={text}` can't be read"))),
        }
    }

    /// Of the certificate that was shown.
    pub fn key(&self) -> Option<&KeyFingerprint> {
        let peer = self.request.extensions().get::<Peer>()?;
        peer.id.as_ref().map(|id| &id.key)
    }

    pub fn takes_body(&mut self) -> Body {
        std::mem::take(self.request.body_mut())
    }

    /// The body, whole, if it is no longer than the operation's may be and comes in time.
    pub async fn bytes(&mut self) -> Result<Bytes, Problem> {
        read(self.takes_body(), self.body_max_bytes).await
    }

    pub async fn json<T: DeserializeOwned>(&mut self) -> Result<T, Problem> {
        let bytes = self.bytes().await?;
        parse_json(&bytes)
    }

    /// The same of what a person declares: a key that the type does not have is refused.
    pub async fn strict_json<T: DeserializeOwned + JsonSchema>(&mut self) -> Result<T, Problem> {
        let bytes = self.bytes().await?;
        let asked = parse_json(&bytes)?;
        match strict::unknown_key::<T>(&parse_json(&bytes)?) {
            None => Ok(asked),
            Some(unknown) => Err(misspelt(&unknown)),
        }
    }

    /// Whether a record must not be there yet: `If-None-Match: *`.
    pub fn if_none_match(&self) -> Result<bool, Problem> {
        match self.headers().get(header::IF_NONE_MATCH) {
            None => Ok(false),
            Some(value) if value == "*" => Ok(true),
            Some(_) => Err(Problem::invalid("`If-None-Match` takes only `*` here")),
        }
    }

    /// What `If-Match` asks for. `*` is any.
    pub fn if_match(&self) -> Result<IfMatch, Problem> {
        let Some(value) = self.headers().get(header::IF_MATCH) else {
            return Ok(IfMatch::Nothing);
        };
        let text = value.to_str().unwrap_or_default().trim();
        if text == "*" {
            return Ok(IfMatch::Any);
        }
        let token = text.trim_matches('"');
        token.parse().map(IfMatch::Revision).map_err(|_| {
            Problem::invalid(format!("`If-Match: {text}` is no ETag of this server"))
                .remedy("pass the ETag that a GET answered, unchanged")
        })
    }
}

/// Reads a body within a bound of its length and of its time.
async fn read(mut body: Body, max_bytes: usize) -> Result<Bytes, Problem> {
    let begun = Instant::now();
    let (mut chunks, mut length) = (Vec::new(), 0);
    if body.size_hint().lower() > max_bytes as u64 {
        return Err(too_long(max_bytes));
    }
    loop {
        let seconds = u32::try_from(length).unwrap_or(u32::MAX) / BODY_MIN_RATE;
        let end = begun + BODY_GRACE + Duration::from_secs(seconds.into());
        let frame = tokio::time::timeout_at(end, body.frame()).await;
        let Some(frame) = frame.map_err(|_| too_slow(length))? else {
            break;
        };
        let frame = frame
            .map_err(|error| Problem::invalid(format!("the body did not come whole: {error}")))?;
        if let Ok(chunk) = frame.into_data() {
            length += chunk.len();
            if length > max_bytes {
                return Err(too_long(max_bytes));
            }
            chunks.push(chunk);
        }
    }
    Ok(match chunks.len() {
        0 | 1 => chunks.pop().unwrap_or_default(),
        _ => chunks.concat().into(),
    })
}

fn too_long(max_bytes: usize) -> Problem {
    let title = format!("the body is longer than {max_bytes} bytes");
    Problem::new(413, "too-large", title)
}

fn too_slow(length: usize) -> Problem {
    let title = format!("the body comes too slowly: {length} bytes so far");
    let remedy = format!(
        "a body has {} s, and a second more for each {BODY_MIN_RATE} bytes of it",
        BODY_GRACE.as_secs()
    );
    Problem::new(408, "too-slow", title).remedy(remedy)
}

pub fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(bytes).map_err(|error| {
        Problem::new(422, "malformed", "the body is not what is asked for")
            .detail(error.to_string())
    })
}

fn misspelt(unknown: &UnknownKey) -> Problem {
    let title = format!("the body has a key that nothing reads: `{}`", unknown.path);
    let problem = Problem::new(422, "malformed", title);
    match &unknown.nearest {
        Some(nearest) => problem.remedy(format!("did you mean `{nearest}`?")),
        None => problem.remedy("take it out: /v1/openapi.json has all that are known"),
    }
}

/// A condition on the record that a request changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfMatch {
    Nothing,
    Any,
    Revision(Revision),
}

impl IfMatch {
    pub fn check<T>(
        self,
        what: impl std::fmt::Display,
        stored: Option<&Stored<T>>,
    ) -> Result<(), Problem> {
        let holds = match self {
            Self::Nothing => true,
            Self::Any => stored.is_some(),
            Self::Revision(revision) => stored.is_some_and(|stored| stored.modified == revision),
        };
        if holds {
            return Ok(());
        }
        Err(Problem::new(
            412,
            "changed-meanwhile",
            format!("{what} is not what If-Match names"),
        )
        .remedy("read it again and repeat the change on what it is now"))
    }
}

/// A JSON answer.
pub fn json(value: &impl Serialize) -> Response {
    let body = serde_json::to_vec(value).expect("wire types are plain data");
    answer(StatusCode::OK, "application/json", body)
}

/// The same, of what was encoded before.
pub fn json_bytes(body: Bytes) -> Response {
    answer(StatusCode::OK, "application/json", body)
}

/// A JSON answer about one record, with its revision as ETag.
pub fn tagged(value: &impl Serialize, revision: Revision) -> Response {
    with_tag(json(value), revision)
}

/// The bytes of one record, with its revision as ETag.
pub fn tagged_bytes(bytes: Bytes, revision: Revision) -> Response {
    let response = answer(StatusCode::OK, "application/octet-stream", bytes);
    with_tag(response, revision)
}

fn with_tag(mut response: Response, revision: Revision) -> Response {
    let tag = HeaderValue::try_from(format!("\"{revision}\"")).expect("a revision is plain text");
    response.headers_mut().insert(header::ETAG, tag);
    response
}

/// One JSON text a line, as they come.
pub fn lines<T: Serialize>(items: impl Stream<Item = T> + Send + 'static) -> Response {
    let chunks = items.map(|item| Ok::<_, std::convert::Infallible>(api::stream::json_line(&item)));
    answer(
        StatusCode::OK,
        "application/x-ndjson",
        Body::from_stream(chunks),
    )
}

pub fn refused(problem: &Problem) -> Response {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = serde_json::to_vec(problem).expect("a problem is plain data");
    answer(status, problem::CONTENT_TYPE, body)
}

fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(chunks: Vec<&'static [u8]>, every: Duration) -> Body {
        let chunks = futures_util::stream::iter(chunks).then(move |chunk| async move {
            tokio::time::sleep(every).await;
            Ok::<_, std::convert::Infallible>(Bytes::from_static(chunk))
        });
        Body::from_stream(chunks)
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_read_within_its_bounds() {
        static CHUNK: [u8; 4096] = [0; 4096];
        let second = Duration::from_secs(1);
        let table = [
            (vec![], second, Ok(0)),
            (vec![&CHUNK[..]; 4], second, Ok(16_384)),
            (vec![&CHUNK[..]; 5], Duration::ZERO, Err(413)),
            // Two bytes a second: given up after ten.
            (vec![&CHUNK[..2]; 100], second, Err(408)),
            (vec![&CHUNK[..1]; 1], 20 * second, Err(408)),
        ];
        for (chunks, every, expect) in table {
            let case = format!("{} chunks every {every:?}", chunks.len());
            let begun = Instant::now();
            let read = read(body(chunks, every), 16_384).await;
            let read = read.map(|bytes| bytes.len());
            assert_eq!(read.map_err(|problem| problem.status), expect, "{case}");
            assert!(
                begun.elapsed() <= 11 * second,
                "{case}: {:?}",
                begun.elapsed()
            );
        }
        // What says that it is too long is not read at all.
        let told = read(Body::from(vec![0; 20_000]), 16_384).await;
        assert_eq!(told.unwrap_err().status, 413);
    }
}
