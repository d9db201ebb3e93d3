//! Bodies that go on: JSON texts line by line, and the frames of `exec`.

use std::pin::Pin;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::Stream;
use http_body_util::BodyExt;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest line of a stream of JSON texts.
pub const LINE_MAX_BYTES: usize = 16 << 20;
/// Longest payload of a frame.
pub const FRAME_MAX_BYTES: usize = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the stream broke: {0}")]
    Broken(String),
    #[error("the stream sent what is not expected: {0}")]
    Malformed(String),
}

pub type BoxStream<T> = Pin<Box<dyn Stream<Item = T> + Send>>;

/// One JSON text with its newline.
pub fn json_line(value: &impl Serialize) -> Bytes {
    let mut line = serde_json::to_vec(value).expect("wire types are plain data");
    line.push(b'\n');
    line.into()
}

/// Reads a body as JSON texts, one a line. Empty lines keep a connection alive and are skipped. An error is the last item.
pub fn json_lines<T, B>(body: B) -> BoxStream<Result<T, Error>>
where
    T: DeserializeOwned + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: std::fmt::Display,
{
    let state = Some((body, BytesMut::new()));
    Box::pin(futures_util::stream::unfold(state, |state| async move {
        let (mut body, mut buffer) = state?;
        let item = next_line(&mut body, &mut buffer).await?;
        let item = item.and_then(|line| parse_line(&line));
        let next = item.is_ok().then_some((body, buffer));
        Some((item, next))
    }))
}

async fn next_line<B>(body: &mut B, buffer: &mut BytesMut) -> Option<Result<Bytes, Error>>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let mut searched = 0;
    loop {
        if let Some(at) = buffer[searched..].iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(searched + at + 1).freeze();
            searched = 0;
            if line.len() > 1 {
                return Some(Ok(line));
            }
            continue;
        }
        searched = buffer.len();
        if buffer.len() > LINE_MAX_BYTES {
            return Some(Err(Error::Malformed("a line is too long".to_owned())));
        }
        match body.frame().await? {
            Ok(frame) => {
                if let Ok(data) = frame.into_data() {
                    buffer.extend_from_slice(&data);
                }
            }
            Err(error) => return Some(Err(Error::Broken(error.to_string()))),
        }
    }
}

fn parse_line<T: DeserializeOwned>(line: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(line).map_err(|error| Error::Malformed(error.to_string()))
}

/// One frame of an `exec` stream: a kind byte, a big-endian u32 length, the payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// JSON of [`crate::wire::Exec`]; the first frame of a request.
    Head(Bytes),
    Stdin(Bytes),
    StdinClosed,
    Resize {
        columns: u16,
        rows: u16,
    },
    Stdout(Bytes),
    Stderr(Bytes),
    /// The last frame of an answer: how the command ended.
    Exit {
        code: i32,
    },
    /// The last frame of an answer: why there was no command to end.
    Failed(Bytes),
}

impl Frame {
    pub fn encode(&self) -> Bytes {
        let (kind, payload) = match self {
            Self::Head(bytes) => (0, bytes.clone()),
            Self::Stdin(bytes) => (1, bytes.clone()),
            Self::StdinClosed => (2, Bytes::new()),
            Self::Resize { columns, rows } => (
                3,
                [columns.to_be_bytes(), rows.to_be_bytes()].concat().into(),
            ),
            Self::Stdout(bytes) => (4, bytes.clone()),
            Self::Stderr(bytes) => (5, bytes.clone()),
            Self::Exit { code } => (6, code.to_be_bytes().to_vec().into()),
            Self::Failed(bytes) => (7, bytes.clone()),
        };
        let mut frame = BytesMut::with_capacity(5 + payload.len());
        frame.put_u8(kind);
        frame.put_u32(u32::try_from(payload.len()).expect("payloads are bounded"));
        frame.put(payload);
        frame.freeze()
    }

    fn decode(kind: u8, mut payload: Bytes) -> Result<Self, Error> {
        let short = || Error::Malformed("a frame is too short".to_owned());
        Ok(match kind {
            0 => Self::Head(payload),
            1 => Self::Stdin(payload),
            2 => Self::StdinClosed,
            3 => Self::Resize {
                columns: payload.try_get_u16().map_err(|_| short())?,
                rows: payload.try_get_u16().map_err(|_| short())?,
            },
            4 => Self::Stdout(payload),
            5 => Self::Stderr(payload),
            6 => Self::Exit {
                code: payload.try_get_i32().map_err(|_| short())?,
            },
            7 => Self::Failed(payload),
            other => return Err(Error::Malformed(format!("no frame has the kind {other}"))),
        })
    }
}

/// Takes frames out of bytes that come in pieces.
#[derive(Debug, Default)]
pub struct FrameReader {
    buffer: BytesMut,
}

impl FrameReader {
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame; `None` until more bytes come.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Error> {
        let Some((head, _)) = self.buffer.split_first_chunk::<5>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let kind = head[0];
        if length > FRAME_MAX_BYTES {
            return Err(Error::Malformed(format!(
                "a frame of {length} bytes is too long"
            )));
        }
        if self.buffer.len() < 5 + length {
            return Ok(None);
        }
        self.buffer.advance(5);
        Frame::decode(kind, self.buffer.split_to(length).freeze()).map(Some)
    }
}

/// Reads a body as frames. An error is the last item.
pub fn frames<B>(body: B) -> BoxStream<Result<Frame, Error>>
where
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: std::fmt::Display,
{
    let state = Some((body, FrameReader::default()));
    Box::pin(futures_util::stream::unfold(state, |state| async move {
        let (mut body, mut reader) = state?;
        let item = next_frame(&mut body, &mut reader).await?;
        let next = item.is_ok().then_some((body, reader));
        Some((item, next))
    }))
}

async fn next_frame<B>(body: &mut B, reader: &mut FrameReader) -> Option<Result<Frame, Error>>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    loop {
        match reader.next_frame() {
            Ok(Some(frame)) => return Some(Ok(frame)),
            Err(error) => return Some(Err(error)),
            Ok(None) => {}
        }
        match body.frame().await? {
            Ok(frame) => {
                if let Ok(data) = frame.into_data() {
                    reader.push(&data);
                }
            }
            Err(error) => return Some(Err(Error::Broken(error.to_string()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_being_cut_anywhere() {
        let sent = [
            Frame::Head(Bytes::from_static(b"{}")),
            Frame::Resize {
                columns: 80,
                rows: 24,
            },
            Frame::Stdout(Bytes::from_static(b"hello")),
            Frame::Exit { code: -3 },
        ];
        let bytes: Vec<u8> = sent.iter().flat_map(Frame::encode).collect();
        for cut in 0..bytes.len() {
            let mut reader = FrameReader::default();
            let mut received = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                reader.push(part);
                while let Some(frame) = reader.next_frame().unwrap() {
                    received.push(frame);
                }
            }
            assert_eq!(received, sent);
        }
    }

    #[test]
    fn an_error_ends_the_stream() {
        use futures_util::StreamExt;
        let body = http_body_util::Full::new(Bytes::from_static(b"1\nx\n2\n"));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let items: Vec<_> = runtime.block_on(json_lines::<u8, _>(body).collect());
        assert_eq!(items.len(), 2);
        assert!(items[0].is_ok() && items[1].is_err());
    }

    #[test]
    fn an_oversized_frame_is_refused_before_it_is_read() {
        let mut reader = FrameReader::default();
        reader.push(&[4, 0xff, 0, 0, 0]);
        assert!(reader.next_frame().is_err());
    }
}
