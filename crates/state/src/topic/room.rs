//! Room for bodies while they are in memory: of a quarter of it at most may one caller hold, and what it announces counts before it has come.
//!
//! Large bodies may take their time, so they never have all of it: nobody small waits for them, not even one of the same caller. A body that
//! announces no length is small until more of it has come. Meanwhile it has room apart: what waits to be large holds nothing that a large one waits
//! for. Once a body is whole, what it did not need is given back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use model::ids::ResourceId;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use super::event::BODY_BYTES_MAX;

/// Bytes of all bodies whose length is known.
const BODIES_BYTES_MAX: usize = 12 << 20;
/// Of these, what the bodies of one caller may take: two of the largest, and small ones beside them.
const CALLERS_BYTES_MAX: usize = BODIES_BYTES_MAX / 4;
/// A body of more is large.
pub const SMALL_BODY_BYTES: u32 = 64 << 10;
/// Bytes of all bodies that have announced no length and are small so far: 64 of them, 16 of one caller.
const UNANNOUNCED_BYTES_MAX: usize = 4 << 20;
const CALLERS_UNANNOUNCED_BYTES_MAX: usize = UNANNOUNCED_BYTES_MAX / 4;
/// What one of them counts once it is large.
const LARGEST: u32 = BODY_BYTES_MAX as u32;

const _: () = assert!(LARGEST as usize <= CALLERS_BYTES_MAX / 4 * 3);

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
    unannounced: Arc<Semaphore>,
}

/// What bounds a body while it is in memory: its caller's part, and that of all.
pub struct Room {
    own: Part,
    all: Part,
    /// Who holds some is known.
    caller: Arc<Bounds>,
}

struct Part {
    large: Option<OwnedSemaphorePermit>,
    bytes: OwnedSemaphorePermit,
}

impl Room {
    /// Gives back what a body of so many bytes does not need.
    pub fn keep_only(&mut self, bytes: usize) {
        self.own.keep_only(bytes);
        self.all.keep_only(bytes);
    }
}

impl Part {
    fn keep_only(&mut self, bytes: usize) {
        let shrink = |permit: &mut OwnedSemaphorePermit| {
            let more = permit.num_permits().saturating_sub(bytes);
            drop(permit.split(more));
        };
        shrink(&mut self.bytes);
        match &mut self.large {
            Some(large) if bytes > SMALL_BODY_BYTES as usize => shrink(large),
            large => *large = None,
        }
    }
}

impl Bounds {
    fn new(bytes: usize, unannounced: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(bytes)),
            large: Arc::new(Semaphore::new(bytes / 4 * 3)),
            unannounced: Arc::new(Semaphore::new(unannounced)),
        }
    }

    async fn take(&self, bytes: Option<u32>) -> Result<Part, AcquireError> {
        let Some(bytes) = bytes else {
            let slots = self.unannounced.clone();
            let bytes = slots.acquire_many_owned(SMALL_BODY_BYTES).await?;
            return Ok(Part { large: None, bytes });
        };
        let large = match bytes > SMALL_BODY_BYTES {
            true => Some(self.large.clone().acquire_many_owned(bytes).await?),
            false => None,
        };
        let bytes = self.all.clone().acquire_many_owned(bytes).await?;
        Ok(Part { large, bytes })
    }
}

impl Default for Rooms {
    fn default() -> Self {
        Self {
            all: Bounds::new(BODIES_BYTES_MAX, UNANNOUNCED_BYTES_MAX),
            callers: Mutex::default(),
        }
    }
}

impl Rooms {
    /// Waits in the caller's own line first: what one caller waits for, no other does. `bytes`: as announced; `None` has room for a small one.
    ///
    /// # Errors
    ///
    /// The topic ends.
    pub async fn take(&self, caller: Caller, bytes: Option<u32>) -> Result<Room, AcquireError> {
        self.take_of(self.of(caller), bytes).await
    }

    /// Room for the largest, in place of that for a small one that announced no length.
    ///
    /// # Errors
    ///
    /// The topic ends.
    pub async fn grow(&self, small: Room) -> Result<Room, AcquireError> {
        self.take_of(small.caller.clone(), Some(LARGEST)).await
    }

    async fn take_of(&self, caller: Arc<Bounds>, bytes: Option<u32>) -> Result<Room, AcquireError> {
        Ok(Room {
            own: caller.take(bytes).await?,
            all: self.all.take(bytes).await?,
            caller,
        })
    }

    fn of(&self, caller: Caller) -> Arc<Bounds> {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        callers.retain(|_, own| Arc::strong_count(own) > 1);
        let fresh = || {
            Arc::new(Bounds::new(
                CALLERS_BYTES_MAX,
                CALLERS_UNANNOUNCED_BYTES_MAX,
            ))
        };
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
        while let Ok(room) =
            tokio::time::timeout(short, rooms.take(caller("greedy"), Some(60_000))).await
        {
            held.push(room.unwrap());
            assert!(held.len() <= CALLERS_BYTES_MAX / 60_000);
        }
        // Many of it wait; each other caller is served at once.
        let mut waiting: Vec<_> = (0..100)
            .map(|_| Box::pin(rooms.take(caller("greedy"), Some(60_000))))
            .collect();
        let cx = &mut Context::from_waker(Waker::noop());
        for one in &mut waiting {
            assert!(one.as_mut().poll(cx).is_pending());
        }
        // Large ones of its own that do not come keep none of its small ones waiting.
        let large = [
            rooms.take(caller("large"), Some(1 << 20)).await.unwrap(),
            rooms.take(caller("large"), Some(1 << 20)).await.unwrap(),
        ];
        let mut second = Box::pin(rooms.take(caller("large"), Some(1 << 20)));
        assert!(second.as_mut().poll(cx).is_pending());
        let small = tokio::time::timeout(short, rooms.take(caller("large"), Some(60_000))).await;
        assert!(small.is_ok());
        for other in [caller("web"), None] {
            let room = tokio::time::timeout(short, rooms.take(other, Some(1_000_000))).await;
            assert!(room.is_ok());
        }
        drop((held, waiting, small, second, large));
        let room = rooms.take(caller("web"), Some(1)).await;
        assert!(room.is_ok());
        assert_eq!(rooms.callers.lock().unwrap().len(), 1);
    }

    /// Most of them are events of some hundred bytes.
    #[tokio::test]
    async fn what_announces_no_length_is_small_until_more_has_come() {
        let rooms = Rooms::default();
        let web = || caller("web");
        let short = Duration::from_millis(10);
        let mut held = Vec::new();
        while let Ok(room) = tokio::time::timeout(short, rooms.take(web(), None)).await {
            held.push(room.unwrap());
            assert!(held.len() <= CALLERS_UNANNOUNCED_BYTES_MAX >> 16);
        }
        assert_eq!(held.len(), 16);
        // Whose length is known have room of their own, and so has everybody else.
        for (other, bytes) in [
            (web(), Some(200)),
            (web(), Some(LARGEST)),
            (caller("else"), None),
        ] {
            let room = tokio::time::timeout(short, rooms.take(other, bytes)).await;
            assert!(room.is_ok(), "{bytes:?}");
        }
        // Two turn out to be large, and a third waits for them; the others need not.
        let mut large = Vec::new();
        for small in held.split_off(14) {
            let grown = tokio::time::timeout(short, rooms.grow(small)).await;
            large.push(grown.expect("there is room").unwrap());
        }
        let third = held.pop().unwrap();
        let mut third = Box::pin(rooms.grow(third));
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(third.as_mut().poll(cx).is_pending());
        let small = tokio::time::timeout(short, rooms.take(web(), None)).await;
        assert!(small.is_ok());
        drop(small);
        // What came is not as large as it might have been.
        large[0].keep_only(100_000);
        let third = tokio::time::timeout(short, third).await;
        assert!(third.is_ok());
        held.iter_mut().for_each(|room| room.keep_only(200));
        let mut others = Vec::new();
        while let Ok(room) = tokio::time::timeout(short, rooms.take(web(), None)).await {
            others.push(room);
            assert!(others.len() <= 16);
        }
        assert_eq!(others.len(), 15);
    }
}
