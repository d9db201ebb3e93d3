//! The tasks of one HTTP/2 connection, and how they are ended from outside.
//!
//! The library hands its connection (the socket and all streams on it) to the executor and returns a future that only sends requests there. So
//! who ends that future ends nothing that is open: the connection goes on until the last stream has ended.

use std::sync::{Arc, Mutex, PoisonError};

use hyper::rt::Executor;
use tokio::task::JoinHandle;

/// Spawns what the library gives it, and keeps the first: that is the connection.
#[derive(Clone, Default)]
pub struct Tasks(Arc<Mutex<First>>);

#[derive(Default)]
enum First {
    #[default]
    Awaited,
    Spawned(JoinHandle<()>),
    Taken,
}

impl<F> Executor<F> for Tasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        let task = tokio::spawn(future);
        let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*first, First::Awaited) {
            *first = First::Spawned(task);
        }
    }
}

impl Tasks {
    /// The connection ends when `over` does, with all streams on it; who waits on one of them learns that it broke off.
    pub fn end_with(&self, over: impl Future<Output = ()> + Send + 'static) {
        let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let First::Spawned(mut connection) = std::mem::replace(&mut *first, First::Taken) else {
            return;
        };
        tokio::spawn(async move {
            tokio::select! {
                _ = &mut connection => {}
                () = over => connection.abort(),
            }
        });
    }
}
