//! `forward LISTEN BACKEND`: the least that a proxy on hyper can be, to measure ours beside. One thread; a connection to the backend for each
//! of the client's.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use anyhow::{Context, Result};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self as client, SendRequest};
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let mut address =
        || -> Result<SocketAddr> { Ok(words.next().context("forward LISTEN BACKEND")?.parse()?) };
    let (listen, backend) = (address()?, address()?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, accept(listen, backend))
}

async fn accept(listen: SocketAddr, backend: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen).await?;
    loop {
        // A client may be gone before it is accepted.
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        spawn_local(async move {
            // The client has gone, or the backend.
            let _ = forward_connection(stream, backend).await;
        });
    }
}

async fn forward_connection(stream: TcpStream, backend: SocketAddr) -> Result<()> {
    stream.set_nodelay(true)?;
    let upstream = TcpStream::connect(backend).await?;
    upstream.set_nodelay(true)?;
    let (sender, connection) = client::handshake(TokioIo::new(upstream)).await?;
    spawn_local(connection);
    let sender = Rc::new(RefCell::new(Some(sender)));
    let forward = |request| send(Rc::clone(&sender), request);
    server::Builder::new()
        .serve_connection(TokioIo::new(stream), service_fn(forward))
        .await?;
    Ok(())
}

/// HTTP/1.1 has one request at a time on a connection: the sender is there between them.
type Shared = Rc<RefCell<Option<SendRequest<Incoming>>>>;

async fn send(shared: Shared, request: Request<Incoming>) -> Result<Response<Incoming>> {
    let mut sender = shared.take().context("one request at a time")?;
    sender.ready().await?;
    let answer = sender.send_request(request).await?;
    shared.replace(Some(sender));
    Ok(answer)
}
