//! What was just published, in the order of commits: told by the writer's thread, read by who delivers.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::{Published, Tail};
use crate::topic::consumer::Position;
use crate::topic::event::{Event, Message};

/// Bytes of messages that are kept in memory, each with what it costs beside its own.
const RECENT_BYTES: u64 = 1 << 20;

pub struct Hub {
    recent: Mutex<Recent>,
    /// Nobody consumes: nothing needs to be kept at hand.
    listening: AtomicBool,
    position: AtomicU64,
    end: AtomicU64,
    published: Notify,
}

/// Messages without gaps, up to the newest.
#[derive(Default)]
struct Recent {
    messages: VecDeque<Message>,
    bytes: u64,
}

/// Of a message in memory, beside its bytes.
const OVERHEAD_BYTES: u64 = 192;

impl Recent {
    fn push(&mut self, message: Message) {
        let newest = self.messages.back().map(|last| last.position);
        if newest.is_some_and(|newest| newest + 1 != message.position) {
            self.clear();
        }
        self.bytes += message.event.size() + OVERHEAD_BYTES;
        self.messages.push_back(message);
        while self.bytes > RECENT_BYTES {
            let Some(oldest) = self.messages.pop_front() else {
                return;
            };
            self.bytes -= oldest.event.size() + OVERHEAD_BYTES;
        }
    }

    fn clear(&mut self) {
        *self = Self::default();
    }

    fn get(&self, position: Position) -> Option<&Message> {
        let first = self.messages.front()?.position;
        let index = usize::try_from(position.checked_sub(first)?).ok()?;
        self.messages.get(index)
    }
}

impl Hub {
    pub fn new(tail: Tail) -> Self {
        Self {
            recent: Mutex::default(),
            listening: AtomicBool::new(false),
            position: AtomicU64::new(tail.position),
            end: AtomicU64::new(tail.end),
            published: Notify::new(),
        }
    }

    /// Called on the writer's thread, after the sync.
    pub(super) fn tell(&self, published: &[Published], events: &[Arc<Event>], tail: Tail) {
        if self.listening.load(Ordering::Relaxed) {
            let mut recent = self.recent();
            for (published, event) in published.iter().zip(events) {
                if !published.duplicate {
                    let position = published.position;
                    let event = event.clone();
                    recent.push(Message { position, event });
                }
            }
        }
        if published.iter().any(|published| !published.duplicate) {
            self.end.store(tail.end, Ordering::Relaxed);
            self.position.store(tail.position, Ordering::Release);
            self.published.notify_one();
        }
    }

    /// Whether anybody consumes.
    pub fn listen(&self, listening: bool) {
        self.listening.store(listening, Ordering::Relaxed);
        if !listening {
            self.recent().clear();
        }
    }

    /// The newest message that is on the disk.
    pub fn newest(&self) -> Position {
        self.position.load(Ordering::Acquire)
    }

    /// Bytes published in the life of the topic.
    pub fn end(&self) -> u64 {
        self.end.load(Ordering::Relaxed)
    }

    pub fn get(&self, position: Position) -> Option<Message> {
        self.recent().get(position).cloned()
    }

    /// Wakes one who waits for more.
    pub async fn published(&self) {
        self.published.notified().await;
    }

    pub fn wake(&self) {
        self.published.notify_one();
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tell(hub: &Hub, position: Position, bytes: usize) {
        let event = Event {
            data: vec![0; bytes].into(),
            ..Event::default()
        };
        let published = Published {
            position,
            duplicate: false,
        };
        let tail = Tail { position, end: 0 };
        hub.tell(&[published], &[Arc::new(event)], tail);
    }

    #[test]
    fn the_newest_are_at_hand_within_bounds() {
        let hub = Hub::new(Tail::default());
        hub.listen(true);
        (1..=100).for_each(|position| tell(&hub, position, 64 << 10));
        assert_eq!(hub.newest(), 100);
        assert_eq!(hub.get(100).map(|message| message.position), Some(100));
        assert!(hub.get(90).is_some(), "1 MiB holds about 15 of them");
        assert!(hub.get(60).is_none() && hub.get(101).is_none());
        assert!(hub.recent().bytes <= RECENT_BYTES);
    }

    #[test]
    fn a_gap_is_never_bridged() {
        let hub = Hub::new(Tail::default());
        hub.listen(true);
        tell(&hub, 1, 1);
        tell(&hub, 5, 1);
        assert!(hub.get(1).is_none(), "what is kept has no gaps");
        assert_eq!(hub.get(5).map(|message| message.position), Some(5));
    }
}
