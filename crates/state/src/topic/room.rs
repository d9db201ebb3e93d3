//! Room for bodies while they are in memory: of a quarter of it at most may one caller hold, and what it announces counts before it has come.
//!
//! Large bodies may take their time, so they never have all of it: nobody small waits for them, not even one of the same caller.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use model::ids::ResourceId;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// Bytes of all bodies.
const BODIES_BYTES_MAX: usize = 8 << 20;
/// Of these, what the bodies of one caller may take.
const CALLERS_BYTES_MAX: usize = BODIES_BYTES_MAX / 4;
/// A body of more is large.
const SMALL_BODY_BYTES: u32 = 64 << 10;

/// Who publishes; `None`: a person, through the server.
type Caller = Option<ResourceId>;

pub struct Rooms {
    all: Bounds,
    /// Of those that hold, or wait for, some.
    callers: Mutex<HashMap<Caller, Arc<Bounds>>>,
}

struct Bounds {
    all: Arc<Semaphore>,
    large: Arc<Semaphore>,
}

/// What bounds a body while it is in memory: its caller's part, and that of all.
pub struct Room {
    _own: Part,
    _all: Part,
}

struct Part {
    _large: Option<OwnedSemaphorePermit>,
    _all: OwnedSemaphorePermit,
    /// Who holds some is known.
    _of: Option<Arc<Bounds>>,
}

impl Bounds {
    fn new(bytes: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(bytes)),
            large: Arc::new(Semaphore::new(bytes / 4 * 3)),
        }
    }

    async fn take(&self, bytes: u32, of: Option<Arc<Self>>) -> Result<Part, AcquireError> {
        let large = match bytes > SMALL_BODY_BYTES {
            true => Some(self.large.clone().acquire_many_owned(bytes).await?),
            false => None,
        };
        Ok(Part {
            _large: large,
            _all: self.all.clone().acquire_many_owned(bytes).await?,
            _of: of,
        })
    }
}

impl Default for Rooms {
    fn default() -> Self {
        Self {
            all: Bounds::new(BODIES_BYTES_MAX),
            callers: Mutex::default(),
        }
    }
}

impl Rooms {
    /// Waits in the caller's own line first: what one caller waits for, no other does.
    ///
    /// # Errors
    ///
    /// The topic ends.
    pub async fn take(&self, caller: Caller, bytes: u32) -> Result<Room, AcquireError> {
        let own = self.of(caller);
        Ok(Room {
            _own: own.take(bytes, Some(own.clone())).await?,
            _all: self.all.take(bytes, None).await?,
        })
    }

    fn of(&self, caller: Caller) -> Arc<Bounds> {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        callers.retain(|_, own| Arc::strong_count(own) > 1);
        let fresh = || Arc::new(Bounds::new(CALLERS_BYTES_MAX));
        callers.entry(caller).or_insert_with(fresh).clone()
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};
    use std::time::Duration;

    use super::*;

    fn caller(name: &str) -> Caller {
        Some(format!("shop/{name}").parse().unwrap())
    }

    #[tokio::test]
    async fn what_one_caller_announces_keeps_nobody_else_waiting() {
        let rooms = Rooms::default();
        let mut held = Vec::new();
        let short = Duration::from_millis(10);
        while let Ok(room) = tokio::time::timeout(short, rooms.take(caller("greedy"), 60_000)).await
        {
            held.push(room.unwrap());
            assert!(held.len() <= CALLERS_BYTES_MAX / 60_000);
        }
        // Many of it wait; each other caller is served at once.
        let mut waiting: Vec<_> = (0..100)
            .map(|_| Box::pin(rooms.take(caller("greedy"), 60_000)))
            .collect();
        let cx = &mut Context::from_waker(Waker::noop());
        for one in &mut waiting {
            assert!(one.as_mut().poll(cx).is_pending());
        }
        // A large one of its own that does not come keeps none of its small ones waiting.
        let large = rooms.take(caller("large"), 1 << 20).await.unwrap();
        let mut second = Box::pin(rooms.take(caller("large"), 1 << 20));
        assert!(second.as_mut().poll(cx).is_pending());
        let small = tokio::time::timeout(short, rooms.take(caller("large"), 60_000)).await;
        assert!(small.is_ok());
        for other in [caller("web"), None] {
            let room = tokio::time::timeout(short, rooms.take(other, 1_000_000)).await;
            assert!(room.is_ok());
        }
        drop((held, waiting, small, second, large));
        let room = rooms.take(caller("web"), 1).await;
        assert!(room.is_ok());
        assert_eq!(rooms.callers.lock().unwrap().len(), 1);
    }
}
