//! What stands behind the proxies, and the least that a proxy on hyper can be: a connection to the backend for each of the client's.

use std::cell::RefCell;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;

use anyhow::Result;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self as client, SendRequest};
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};

const BODY: Bytes = Bytes::from_static(&[b'x'; 128]);
const FORWARDER_THREADS: usize = 2;

/// Answers every request with 128 bytes, on one thread.
pub(super) fn backend(address: SocketAddr) -> Result<()> {
    serve(address, |stream| async move {
        let answer = |_| async { Ok::<_, Infallible>(Response::new(Full::new(BODY))) };
        let connection =
            server::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer));
        // The client has gone.
        let _ = connection.await;
    })
}

/// Forwards every request as it is, on two threads.
pub(super) fn forwarder(address: SocketAddr, backend: SocketAddr) -> Result<()> {
    let forward = move |stream| async move {
        // The client has gone, or the backend.
        let _ = forward_connection(stream, backend).await;
    };
    let others: Vec<_> = (1..FORWARDER_THREADS)
        .map(|_| std::thread::spawn(move || serve(address, forward)))
        .collect();
    serve(address, forward)?;
    for other in others {
        other.join().expect("no thread panics")?;
    }
    Ok(())
}

async fn forward_connection(stream: TcpStream, backend: SocketAddr) -> Result<()> {
    let upstream = TcpStream::connect(backend).await?;
    upstream.set_nodelay(true)?;
    let (sender, connection) = client::handshake(TokioIo::new(upstream)).await?;
    spawn_local(connection);
    // HTTP/1.1 has one request at a time on a connection.
    let sender = Rc::new(RefCell::new(Some(sender)));
    let forward = |request| send(Rc::clone(&sender), request);
    server::Builder::new()
        .serve_connection(TokioIo::new(stream), service_fn(forward))
        .await?;
    Ok(())
}

type Shared = Rc<RefCell<Option<SendRequest<Incoming>>>>;

async fn send(shared: Shared, request: Request<Incoming>) -> Result<Response<Incoming>> {
    let mut sender = shared.take().expect("one request at a time");
    sender.ready().await?;
    let answer = sender.send_request(request).await?;
    shared.replace(Some(sender));
    Ok(answer)
}

/// Accepts on a runtime of this thread, beside other threads that do the same.
fn serve<F>(address: SocketAddr, handle: impl Fn(TcpStream) -> F) -> Result<()>
where
    F: Future<Output = ()> + 'static,
{
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_port(true)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, async {
        let listener = TcpListener::from_std(socket.into())?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            spawn_local(handle(stream));
        }
    })
}
