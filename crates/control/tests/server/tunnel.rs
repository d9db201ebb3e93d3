//! Logs and exec: asked of the server, answered by the node over the connection that it opened.

use std::sync::Arc;

use api::client::Transport;
use api::stream::Frame;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use model::signals::{LogLine, Stream};
use tls::Expect;

use crate::cloud::*;

/// Opens the tunnel of a node, and answers on it: two log lines, and exec that says back what it is told.
pub async fn open_tunnel(node: &FakeNode) {
    open_tunnel_with(node, on_node).await;
}

/// Opens the tunnel of a node, and answers on it as told.
pub async fn open_tunnel_with<A>(node: &FakeNode, on_node: fn(Request<Incoming>) -> A)
where
    A: Future<Output = Result<Response<Body>, hyper::Error>> + Send + 'static,
{
    let mut config =
        tls::client_config(&node.identity, &node.authority, Expect::Anyone, clock()).unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let transport = Transport::Tls {
        address: node.server,
        config: Arc::new(config),
        name: tls::server_name(),
    };
    let io = transport.connect().await.unwrap();
    let (mut sender, driver) =
        hyper::client::conn::http1::handshake(TokioIo::new(std::pin::Pin::new(io)))
            .await
            .unwrap();
    tokio::spawn(driver.with_upgrades());
    let request = Request::builder()
        .uri(format!("/v1/nodes/{}/tunnel", node.name))
        .header("host", "mainland")
        .header("connection", "upgrade")
        .header("upgrade", "mainland-tunnel")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let answer = sender.send_request(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
    let upgraded = hyper::upgrade::on(answer).await.unwrap();
    tokio::spawn(
        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .max_concurrent_streams(api::window::TUNNELLED_MOST)
            .serve_connection(upgraded_io(upgraded), service_fn(on_node)),
    );
}

fn upgraded_io(upgraded: hyper::upgrade::Upgraded) -> hyper::upgrade::Upgraded {
    upgraded
}

pub type Body = BoxBody<Bytes, hyper::Error>;

async fn on_node(request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let path = request.uri().path().to_owned();
    if path.ends_with("/logs") {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let line = |text: String| {
            let at = jiff::Timestamp::UNIX_EPOCH;
            api::stream::json_line(&LogLine::new(at, Stream::Stdout, text))
        };
        let text = [line(path), line(query)].concat();
        let body = http_body_util::Full::new(Bytes::from(text))
            .map_err(|never| match never {})
            .boxed();
        return Ok(Response::new(body));
    }
    // Frames come back as they come in: nothing is collected first.
    Ok(Response::new(request.into_body().boxed()))
}

#[tokio::test]
async fn logs_and_exec_travel_the_nodes_own_connection() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let node = cloud.join("a").await;
    cloud.apply(&apply_of(&[("web", service(1))])).await;
    cloud.ready("web", 1).await;
    let refused = cloud.client.logs(&project(), "web-1", 10, false).await;
    assert_eq!(code(refused.map(drop)), "node-unreachable");
    assert_eq!(
        code(
            cloud
                .client
                .logs(&project(), "web-9", 10, false)
                .await
                .map(drop)
        ),
        "not-found"
    );

    open_tunnel(&node).await;
    let lines = until("the tunnel", || async {
        cloud.client.logs(&project(), "web-1", 10, false).await.ok()
    })
    .await;
    let lines: Vec<_> = lines.map(|line| line.unwrap().text).collect().await;
    assert_eq!(
        lines,
        ["/v1/instances/shop/web-1/logs", "tail=10&follow=false"]
    );

    // Each frame is answered before the next is sent: bodies are streamed both ways. Two at once.
    let (first, second) = tokio::join!(echo(&cloud), echo(&cloud));
    assert_eq!((first, second), (3, 3));
}

/// Keeps the output of `web-9`, and of nothing else.
pub async fn keeps_web_9(request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    match request.uri().path() {
        "/v1/instances/shop/web-9/logs" => on_node(request).await,
        _ => keeps_nothing(request).await,
    }
}

async fn keeps_nothing(_: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let empty = Empty::new().map_err(|never| match never {}).boxed();
    let mut answer = Response::new(empty);
    *answer.status_mut() = StatusCode::NOT_FOUND;
    Ok(answer)
}

/// Its answer does not come.
async fn is_stuck(_: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    std::future::pending().await
}

#[tokio::test]
async fn the_output_of_what_is_gone_is_looked_for_on_all_nodes() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let [first, second, third] = cloud.three_nodes().await;
    cloud.apply(&apply_of(&[("web", service(1))])).await;
    cloud.ready("web", 1).await;
    open_tunnel_with(&first, keeps_nothing).await;
    open_tunnel_with(&second, is_stuck).await;
    open_tunnel_with(&third, keeps_web_9).await;

    let lines = until("the node that keeps it", || async {
        cloud.client.logs(&project(), "web-9", 7, false).await.ok()
    })
    .await;
    let lines: Vec<_> = lines.map(|line| line.unwrap().text).collect().await;
    assert_eq!(
        lines,
        ["/v1/instances/shop/web-9/logs", "tail=7&follow=false"]
    );
    let began = std::time::Instant::now();
    let nowhere = cloud.client.logs(&project(), "web-8", 7, false).await;
    assert_eq!(code(nowhere.map(drop)), "not-found");
    assert!(
        began.elapsed() < std::time::Duration::from_secs(10),
        "a node that is stuck is not waited for"
    );
}

async fn echo(cloud: &Cloud) -> usize {
    let (sender, receiver) = tokio::sync::mpsc::channel::<Bytes>(1);
    let frames = stream::unfold(receiver, |mut receiver| async move {
        Some((receiver.recv().await?, receiver))
    });
    sender
        .send(Frame::Stdin(Bytes::from_static(b"0")).encode())
        .await
        .unwrap();
    let mut answer = cloud
        .client
        .exec(&project(), "web-1", frames)
        .await
        .unwrap();
    let mut count = 0;
    for index in 0..3_u8 {
        let Some(Ok(Frame::Stdin(said))) = answer.next().await else {
            panic!("no frame came back")
        };
        assert_eq!(said, index.to_string().as_bytes());
        count += 1;
        let next = Frame::Stdin(Bytes::from((index + 1).to_string())).encode();
        sender.send(next).await.unwrap();
    }
    count
}

/// Bytes that `says_much` has said, of all that it is asked for.
static SAID: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

/// Its logs have no end; everything else is said back.
async fn says_much(request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    if !request.uri().path().ends_with("/logs") {
        return on_node(request).await;
    }
    let line = Bytes::from(vec![b' '; 64 << 10]);
    let lines = stream::repeat_with(move || {
        SAID.fetch_add(line.len(), std::sync::atomic::Ordering::Relaxed);
        Ok(hyper::body::Frame::data(line.clone()))
    });
    Ok(Response::new(BodyExt::boxed(
        http_body_util::StreamBody::new(lines),
    )))
}

/// Output that nobody takes fills its own stream, and stops nothing else on the way.
#[tokio::test]
async fn who_reads_nothing_stops_nobody_else() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let node = cloud.join("a").await;
    cloud.apply(&apply_of(&[("web", service(1))])).await;
    cloud.ready("web", 1).await;
    open_tunnel_with(&node, says_much).await;
    let first = until("the tunnel", || async {
        cloud.client.logs(&project(), "web-1", 1, true).await.ok()
    });
    drop(first.await);
    for has_own in [true, false] {
        let mut unread = Vec::new();
        for _ in 0..4 {
            let own = has_own.then(|| cloud.client.another());
            let client = own.as_ref().unwrap_or(&cloud.client);
            let output = client.logs(&project(), "web-1", 1, true).await.unwrap();
            unread.push((output, own));
        }
        until_it_stands_still().await;
        let within = std::time::Duration::from_secs(10);
        let echoed = tokio::time::timeout(within, echo(&cloud)).await;
        assert_eq!(
            echoed,
            Ok(3),
            "readers with connections of their own: {has_own}"
        );
    }
}

/// Until no window has room left.
async fn until_it_stands_still() {
    let before = std::sync::atomic::AtomicUsize::new(usize::MAX);
    until("all windows are full", || async {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        let said = SAID.load(std::sync::atomic::Ordering::Relaxed);
        (before.swap(said, std::sync::atomic::Ordering::Relaxed) == said).then_some(())
    })
    .await;
}

/// Its logs are followed for ever.
async fn says_nothing(request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    if !request.uri().path().ends_with("/logs") {
        return on_node(request).await;
    }
    let silent = http_body_util::StreamBody::new(stream::pending());
    Ok(Response::new(BodyExt::boxed(silent)))
}

/// However many follow its output, or read what is gone and do not go on, a node has room for what others ask, and for what is asked and answered.
#[tokio::test]
async fn a_tunnel_keeps_room_beside_what_people_hold() {
    let directory = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(directory.path()).await;
    let node = cloud.join("a").await;
    cloud.apply(&apply_of(&[("web", service(1))])).await;
    cloud.ready("web", 1).await;
    let other = "other".parse().unwrap();
    let of_other = apply_of(&[("web", service(1))]);
    cloud
        .client
        .apply(&other, &of_other, false, &key())
        .await
        .unwrap();
    open_tunnel_with(&node, says_nothing).await;
    let first = until("the tunnel", || async {
        cloud.client.logs(&project(), "web-1", 1, true).await.ok()
    })
    .await;
    let mut held = vec![first];
    let mut client = cloud.client.another();
    let refused = loop {
        // The server takes a few hundred requests at once on one connection.
        if held.len() % 200 == 0 {
            client = cloud.client.another();
        }
        // The second is gone.
        let instance = ["web-1", "web-9"][held.len() % 2];
        match client.logs(&project(), instance, 1, true).await {
            Ok(followed) => held.push(followed),
            Err(error) => break error,
        }
        assert!(held.len() < api::window::TUNNELLED_MOST as usize);
    };
    assert_eq!(refused.code(), Some("busy"), "{refused}");
    assert_eq!(held.len(), 450, "half of what there is for people");
    for gone_too in ["web-1", "web-9"] {
        let refused = cloud.client.logs(&project(), gone_too, 7, false).await;
        assert_eq!(code(refused.map(drop)), "busy", "{gone_too}");
    }
    // Who works in another project has theirs.
    let of_other = until("its output", || async {
        cloud.client.logs(&other, "web-1", 1, true).await.ok()
    });
    drop(of_other.await);
    held.truncate(10);
    let again = until("there is room again", || async {
        cloud.client.logs(&project(), "web-1", 1, true).await.ok()
    });
    drop(again.await);
}
