//! What is on the disk, and what would survive.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::vfs::{self, Region};

/// A write is kept or lost in pieces of this size.
const SECTOR_BYTES: u64 = 512;

/// A disk in memory. Clones are the same disk.
#[derive(Clone)]
pub struct Disk {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    state: Mutex<State>,
}

/// Why a call failed, in the words of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Full,
    Failed,
    SyncFailed,
    Busy,
    NotFound,
}

#[derive(Default)]
pub(super) struct State {
    files: HashMap<String, File>,
    /// Counts power losses; handles from before one are dead.
    power: u64,
    handles: u64,
    capacity_bytes: Option<u64>,
    syncs_fail: bool,
    syncs: u64,
}

#[derive(Default)]
struct File {
    /// What programs see.
    current: Vec<u8>,
    /// What a power loss leaves. None: not even the name.
    durable: Option<Vec<u8>>,
    /// What happened since the last sync.
    unsynced: Vec<Change>,
    lock: Lock,
    regions: Vec<Region>,
    slots: [Slot; 8],
}

enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    Truncate { length: u64 },
}

/// The five-level lock of a database file.
#[derive(Default)]
struct Lock {
    sharing: u32,
    /// Holds RESERVED or more.
    writer: Option<u64>,
    /// PENDING or EXCLUSIVE: nobody new may share.
    closed: bool,
}

/// One lock of the shared memory beside a log.
#[derive(Clone, Copy, Default)]
struct Slot {
    sharing: u32,
    exclusive: bool,
}

/// An open file.
#[derive(Debug)]
pub(super) struct Handle {
    path: String,
    power: u64,
    id: u64,
    level: i32,
    sharing_slots: u8,
    exclusive_slots: u8,
}

impl Disk {
    #[expect(
        clippy::new_without_default,
        reason = "each disk is registered with SQLite for good"
    )]
    pub fn new() -> Disk {
        let shared = Arc::new(Shared {
            name: vfs::unique_name(),
            state: Mutex::default(),
        });
        let disk = Disk { shared };
        vfs::register(&disk);
        disk
    }

    /// The power goes: what was not synced is lost, except the pieces that `keeps` says reached the plate.
    /// Everyone who has a file open gets errors from now on.
    pub fn lose_power(&self, mut keeps: impl FnMut() -> bool) {
        let mut state = self.state();
        state.power += 1;
        state.files.retain(|_, file| file.lose_power(&mut keeps));
    }

    /// No more bytes than these, in all files together.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity_bytes = bytes;
    }

    pub fn set_syncs_fail(&self, fail: bool) {
        self.state().syncs_fail = fail;
    }

    pub fn used_bytes(&self) -> u64 {
        self.state().used_bytes()
    }

    pub fn syncs(&self) -> u64 {
        self.state().syncs
    }

    pub fn file_bytes(&self, path: &str) -> u64 {
        self.state()
            .files
            .get(path)
            .map_or(0, |file| file.current.len() as u64)
    }

    pub(crate) fn name(&self) -> &str {
        &self.shared.name
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_tuple("Disk")
            .field(&self.shared.name)
            .finish()
    }
}

impl State {
    pub(super) fn open(&mut self, path: &str, create: bool) -> Result<Handle, Fault> {
        if !create && !self.exists(path) {
            return Err(Fault::NotFound);
        }
        self.files.entry(path.to_owned()).or_default();
        self.handles += 1;
        let (power, id) = (self.power, self.handles);
        Ok(Handle {
            path: path.to_owned(),
            power,
            id,
            level: 0,
            sharing_slots: 0,
            exclusive_slots: 0,
        })
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        self.files.contains_key(path)
    }

    pub(super) fn delete(&mut self, path: &str) -> Result<(), Fault> {
        self.files.remove(path).map(|_| ()).ok_or(Fault::NotFound)
    }

    /// Fills as much of the buffer as there is; answers how much.
    pub(super) fn read(
        &mut self,
        handle: &Handle,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, Fault> {
        let file = self.file(handle)?;
        let rest = file.current.get(offset as usize..).unwrap_or_default();
        let read = rest.len().min(buffer.len());
        buffer[..read].copy_from_slice(&rest[..read]);
        Ok(read)
    }

    pub(super) fn write(
        &mut self,
        handle: &Handle,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), Fault> {
        let end = offset + bytes.len() as u64;
        let grown = end.saturating_sub(self.file(handle)?.current.len() as u64);
        if grown > 0
            && self
                .capacity_bytes
                .is_some_and(|capacity| self.used_bytes() + grown > capacity)
        {
            return Err(Fault::Full);
        }
        let file = self.file(handle)?;
        for (offset, bytes) in sectors(offset, bytes) {
            file.change(Change::Write {
                offset,
                bytes: bytes.to_owned(),
            });
        }
        Ok(())
    }

    pub(super) fn truncate(&mut self, handle: &Handle, length: u64) -> Result<(), Fault> {
        self.file(handle)?.change(Change::Truncate { length });
        Ok(())
    }

    pub(super) fn sync(&mut self, handle: &Handle) -> Result<(), Fault> {
        let fail = self.syncs_fail;
        self.syncs += 1;
        let file = self.file(handle)?;
        if fail {
            return Err(Fault::SyncFailed);
        }
        let durable = file.durable.get_or_insert_default();
        file.unsynced
            .drain(..)
            .for_each(|change| change.apply(durable));
        Ok(())
    }

    pub(super) fn length(&mut self, handle: &Handle) -> Result<u64, Fault> {
        Ok(self.file(handle)?.current.len() as u64)
    }

    pub(super) fn lock(&mut self, handle: &mut Handle, level: i32) -> Result<(), Fault> {
        let lock = &mut self.file(handle)?.lock;
        let mine = lock.writer.is_none_or(|writer| writer == handle.id);
        match level {
            _ if level <= handle.level => return Ok(()),
            vfs::SHARED if lock.closed => return Err(Fault::Busy),
            vfs::SHARED => lock.sharing += 1,
            _ if !mine => return Err(Fault::Busy),
            vfs::EXCLUSIVE => {
                lock.writer = Some(handle.id);
                lock.closed = true;
                handle.level = vfs::PENDING;
                if lock.sharing > 1 {
                    return Err(Fault::Busy);
                }
            }
            _ => lock.writer = Some(handle.id),
        }
        handle.level = level;
        Ok(())
    }

    pub(super) fn unlock(&mut self, handle: &mut Handle, level: i32) {
        let before = std::mem::replace(&mut handle.level, level);
        let Ok(file) = self.file(handle) else { return };
        if before > vfs::SHARED && file.lock.writer == Some(handle.id) {
            file.lock.writer = None;
            file.lock.closed = false;
        }
        if before >= vfs::SHARED && level < vfs::SHARED {
            file.lock.sharing -= 1;
        }
    }

    pub(super) fn is_reserved(&mut self, handle: &Handle) -> Result<bool, Fault> {
        Ok(self.file(handle)?.lock.writer.is_some())
    }

    pub(super) fn region(
        &mut self,
        handle: &Handle,
        index: usize,
        bytes: usize,
        extend: bool,
    ) -> Result<Option<Region>, Fault> {
        let regions = &mut self.file(handle)?.regions;
        while extend && regions.len() <= index {
            regions.push(Region::new(bytes));
        }
        Ok(regions.get(index).copied())
    }

    pub(super) fn lock_slots(
        &mut self,
        handle: &mut Handle,
        slots: u8,
        exclusive: bool,
    ) -> Result<(), Fault> {
        let file = self.file(handle)?;
        let blocks = |slot: &Slot| slot.exclusive || (exclusive && slot.sharing > 0);
        if file.chosen(slots).any(|slot| blocks(slot)) {
            return Err(Fault::Busy);
        }
        for slot in file.chosen(slots) {
            slot.exclusive = exclusive;
            slot.sharing += u32::from(!exclusive);
        }
        let held = if exclusive {
            &mut handle.exclusive_slots
        } else {
            &mut handle.sharing_slots
        };
        *held |= slots;
        Ok(())
    }

    pub(super) fn unlock_slots(&mut self, handle: &mut Handle, slots: u8) {
        let (exclusive, sharing) = (slots & handle.exclusive_slots, slots & handle.sharing_slots);
        handle.exclusive_slots &= !slots;
        handle.sharing_slots &= !slots;
        let Ok(file) = self.file(handle) else { return };
        file.chosen(exclusive)
            .for_each(|slot| slot.exclusive = false);
        file.chosen(sharing).for_each(|slot| slot.sharing -= 1);
    }

    fn used_bytes(&self) -> u64 {
        self.files
            .values()
            .map(|file| file.current.len() as u64)
            .sum()
    }

    fn file(&mut self, handle: &Handle) -> Result<&mut File, Fault> {
        let alive = handle.power == self.power;
        self.files
            .get_mut(&handle.path)
            .filter(|_| alive)
            .ok_or(Fault::Failed)
    }
}

impl File {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.current);
        self.unsynced.push(change);
    }

    /// False: the file itself is gone.
    fn lose_power(&mut self, keeps: &mut impl FnMut() -> bool) -> bool {
        let Some(mut durable) = self.durable.take() else {
            return false;
        };
        self.unsynced
            .drain(..)
            .filter(|_| keeps())
            .for_each(|change| change.apply(&mut durable));
        *self = File {
            current: durable.clone(),
            durable: Some(durable),
            ..File::default()
        };
        true
    }

    fn chosen(&mut self, slots: u8) -> impl Iterator<Item = &mut Slot> {
        self.slots
            .iter_mut()
            .enumerate()
            .filter(move |(index, _)| slots & (1 << index) != 0)
            .map(|(_, slot)| slot)
    }
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Change::Truncate { length } => content.truncate(*length as usize),
            Change::Write { offset, bytes } => {
                let (start, end) = (*offset as usize, *offset as usize + bytes.len());
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[start..end].copy_from_slice(bytes);
            }
        }
    }
}

/// A write, cut where sectors begin.
fn sectors(offset: u64, bytes: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let mut rest = (offset, bytes);
    std::iter::from_fn(move || {
        let (offset, bytes) = rest;
        let room = (SECTOR_BYTES - offset % SECTOR_BYTES) as usize;
        let (piece, left) = bytes.split_at(room.min(bytes.len()));
        rest = (offset + piece.len() as u64, left);
        (!piece.is_empty()).then_some((offset, piece))
    })
}
