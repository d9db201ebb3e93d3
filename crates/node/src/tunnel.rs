//! The way from the servers to this node: a connection that the node dials and then answers on, since a node may not be reachable itself.

use std::sync::Arc;
use std::time::Duration;

use api::client::{Body, whole};
use api::window;
use http::{HeaderValue, Request, StatusCode, header};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

use crate::agent::Agent;
use crate::pause::Pause;
use crate::socket;

const PROTOCOL: &str = "mainland-tunnel";
/// A tunnel that is dead without a word is found out by this.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
/// A tunnel that lived this long was a good one.
const GOOD: Duration = Duration::from_secs(5);

/// Keeps one tunnel for as long as the agent lives.
pub async fn run(agent: Arc<Agent>) {
    let mut pause = Pause::of_connection();
    loop {
        let began = std::time::Instant::now();
        if let Err(error) = dig(&agent).await {
            tracing::debug!(error, "no tunnel");
        }
        if began.elapsed() > GOOD {
            pause.reset();
        }
        pause.wait().await;
    }
}

async fn dig(agent: &Arc<Agent>) -> Result<(), String> {
    let transport = agent
        .identities
        .tunnel_transport()
        .map_err(|error| error.to_string())?;
    let io = transport
        .connect()
        .await
        .map_err(|error| error.to_string())?;
    let io = TokioIo::new(std::pin::Pin::new(io));
    let handshake = hyper::client::conn::http1::handshake::<_, Body>(io).await;
    let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
    let driver = tokio::spawn(connection.with_upgrades());
    let asked = tokio::time::timeout(ANSWER_PATIENCE, sender.send_request(request(agent)?)).await;
    let answer = match asked {
        Ok(Ok(answer)) if answer.status() == StatusCode::SWITCHING_PROTOCOLS => answer,
        Ok(Ok(answer)) => return Err(format!("the server answered {}", answer.status())),
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => {
            driver.abort();
            return Err("the server did not answer".to_owned());
        }
    };
    let upgraded = hyper::upgrade::on(answer)
        .await
        .map_err(|error| error.to_string())?;
    let agent = agent.clone();
    let service = service_fn(move |request| socket::answer(agent.clone(), request));
    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(window::OF_TUNNELLED)
        .initial_connection_window_size(window::OF_CONNECTION)
        .max_concurrent_streams(window::TUNNELLED_MOST)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .serve_connection(TokioIo::new(TokioIo::new(upgraded)), service)
        .await
        .map_err(|error| error.to_string())
}

fn request(agent: &Agent) -> Result<Request<Body>, String> {
    let path = format!("/v1/nodes/{}/tunnel", agent.config.name);
    let mut request = Request::new(whole(Vec::new()));
    *request.uri_mut() = path
        .parse()
        .map_err(|_| "a node's name makes no path".to_owned())?;
    let headers = request.headers_mut();
    headers.insert(header::HOST, HeaderValue::from_static("mainland"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(PROTOCOL));
    Ok(request)
}
