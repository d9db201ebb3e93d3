//! The one connection of a client: made by a task of its own, kept while another is made.
//!
//! ```text
//! none ──asked for──▶ being made ──▶ stands ──an answer is late──▶ doubted: used on, while another is made
//!  ▲                      │ failed     ▲ │ closed                       │
//!  └──────────────────────┴────────────┼─┘                              │
//!                                      └────────────────────────────────┘
//! ```
//!
//! A caller that gives up takes nothing along: the making goes on, so that a network which needs a second for a connection is not asked anew
//! each time.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::watch;

use crate::window;

use super::{Body, Error, PING_INTERVAL, PING_TIMEOUT, Transport};

/// For another connection to stand before one that is doubted is used once more.
const DOUBT_GRACE: Duration = Duration::from_millis(100);

type Sender = SendRequest<Body>;
/// How the making went: `None` while it goes on.
type Made = watch::Receiver<Option<Result<Sender, Unmade>>>;

/// Why there is no connection. Nothing was sent.
#[derive(Debug, Clone)]
pub(super) enum Unmade {
    Unreachable(String),
    /// Who answers did not prove to be the server.
    NotTheServer(String),
}

impl Unmade {
    fn error(self, transport: &Transport) -> Error {
        let address = transport.to_string();
        match self {
            Self::Unreachable(cause) => Error::Unreachable { address, cause },
            Self::NotTheServer(cause) => Error::NotTheServer { address, cause },
        }
    }
}

pub(super) struct Connection {
    transport: Transport,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    sender: Option<Sender>,
    doubted: bool,
    making: Option<Made>,
}

impl State {
    fn usable(&self) -> Option<Sender> {
        self.sender.clone().filter(|sender| !sender.is_closed())
    }
}

impl Connection {
    pub(super) fn new(transport: Transport) -> Self {
        Self {
            transport,
            state: Arc::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn transport(&self) -> &Transport {
        &self.transport
    }

    pub(super) fn stands(&self) -> bool {
        self.state().usable().is_some()
    }

    /// An answer on it did not come: it may be the connection's fault.
    pub(super) fn doubt(&self) {
        self.state().doubted = true;
    }

    /// A connection to send on.
    pub(super) async fn sender(&self) -> Result<Sender, Error> {
        let (usable, doubted) = {
            let state = self.state();
            (state.usable(), state.doubted)
        };
        match usable {
            Some(sender) if !doubted => Ok(sender),
            Some(sender) => {
                let made = tokio::time::timeout(DOUBT_GRACE, wait(self.make())).await;
                Ok(made.ok().and_then(Result::ok).unwrap_or(sender))
            }
            None => {
                let made = wait(self.make()).await;
                made.map_err(|unmade| unmade.error(&self.transport))
            }
        }
    }

    /// Begins to make one, unless one is being made.
    pub(super) fn make(&self) -> Made {
        let mut state = self.state();
        // One whose task is gone, with the runtime that it ran on, is none.
        let going_on = |made: &&Made| made.borrow().is_none() && made.has_changed().is_ok();
        if let Some(made) = state.making.as_ref().filter(going_on) {
            return made.clone();
        }
        let (tell, made) = watch::channel(None);
        state.making = Some(made.clone());
        let (transport, shared) = (self.transport.clone(), self.state.clone());
        tokio::spawn(async move {
            let outcome = connect(&transport).await;
            let mut state = shared.lock().unwrap_or_else(PoisonError::into_inner);
            if let Ok(sender) = &outcome {
                // The old one ends with the last that is under way on it.
                state.sender = Some(sender.clone());
                state.doubted = false;
            }
            state.making = None;
            drop(state);
            tell.send_replace(Some(outcome));
        });
        made
    }
}

async fn wait(mut made: Made) -> Result<Sender, Unmade> {
    let made = made.wait_for(Option::is_some).await;
    let made = made.map_err(|_| Unmade::Unreachable("the connection was given up".to_owned()))?;
    made.clone().expect("it was waited for")
}

async fn connect(transport: &Transport) -> Result<Sender, Unmade> {
    let io = transport.connect().await.map_err(|error| match error {
        Error::Unreachable { cause, .. } => Unmade::Unreachable(cause),
        Error::NotTheServer { cause, .. } => Unmade::NotTheServer(cause),
        error => Unmade::Unreachable(error.to_string()),
    })?;
    let handshake = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(window::OF_ANSWER)
        .initial_connection_window_size(window::OF_CONNECTION)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .handshake(TokioIo::new(Pin::new(io)))
        .await;
    let (sender, driver) = handshake.map_err(|error| Unmade::Unreachable(error.to_string()))?;
    tokio::spawn(driver);
    Ok(sender)
}
