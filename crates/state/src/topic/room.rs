//! Room for bodies while they are in memory: of a quarter of it at most may one caller hold, and what it announces counts before it has come.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use model::ids::ResourceId;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, SemaphorePermit};

/// Bytes of all bodies.
pub const BODIES_BYTES_MAX: usize = 8 << 20;
/// Of these, what large ones may take: small ones always find some.
const LARGE_BODIES_BYTES_MAX: usize = BODIES_BYTES_MAX / 4 * 3;
const SMALL_BODY_BYTES: u32 = 64 << 10;
/// Of these, what the bodies of one caller may take.
const CALLERS_BYTES_MAX: usize = BODIES_BYTES_MAX / 4;

/// Who publishes; `None`: a person, through the server.
type Caller = Option<ResourceId>;

pub struct Rooms {
    all: Semaphore,
    large: Semaphore,
    /// Of those that hold, or wait for, some.
    callers: Mutex<HashMap<Caller, Arc<Semaphore>>>,
}

/// What bounds a body while it is in memory.
pub struct Room<'a> {
    _own: OwnedSemaphorePermit,
    _large: Option<SemaphorePermit<'a>>,
    _all: SemaphorePermit<'a>,
}

impl Default for Rooms {
    fn default() -> Self {
        Self {
            all: Semaphore::new(BODIES_BYTES_MAX),
            large: Semaphore::new(LARGE_BODIES_BYTES_MAX),
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
    pub async fn take(&self, caller: Caller, bytes: u32) -> Result<Room<'_>, AcquireError> {
        let own = self.of(caller);
        let own = own.acquire_many_owned(bytes).await?;
        let large = match bytes > SMALL_BODY_BYTES {
            true => Some(self.large.acquire_many(bytes).await?),
            false => None,
        };
        Ok(Room {
            _own: own,
            _large: large,
            _all: self.all.acquire_many(bytes).await?,
        })
    }

    fn of(&self, caller: Caller) -> Arc<Semaphore> {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever holds or waits for some has a share in its semaphore.
        callers.retain(|_, own| Arc::strong_count(own) > 1);
        let fresh = || Arc::new(Semaphore::new(CALLERS_BYTES_MAX));
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
        for other in [caller("web"), None] {
            let room = tokio::time::timeout(short, rooms.take(other, 1_000_000)).await;
            assert!(room.is_ok());
        }
        drop((held, waiting));
        let room = rooms.take(caller("web"), 1).await;
        assert!(room.is_ok());
        assert_eq!(rooms.callers.lock().unwrap().len(), 1);
    }
}
