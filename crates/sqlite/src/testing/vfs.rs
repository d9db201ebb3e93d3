//! SQLite's view of a [`Disk`]: the only unsafe code here, and only in tests.
//!
//! SQLite promises for every call what the SAFETY comments rely on: the pointers it passes are the ones it was given or buffers
//! of the stated size, a file is used by one thread at a time, and no call comes after the close. Disks are registered for good,
//! so what SQLite points to never goes away.
#![expect(unsafe_code, reason = "a file layer for SQLite is an interface of C")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::size_of;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use rusqlite::ffi;

use super::disk::{Disk, Fault, Handle};

pub(super) const SHARED: i32 = ffi::SQLITE_LOCK_SHARED;
pub(super) const PENDING: i32 = ffi::SQLITE_LOCK_PENDING;
pub(super) const EXCLUSIVE: i32 = ffi::SQLITE_LOCK_EXCLUSIVE;

const LONGEST_PATH: c_int = 512;

/// A piece of shared memory beside a log. Never freed: connections from before a power loss may still look at it.
#[derive(Clone, Copy)]
pub(super) struct Region(*mut c_void);

// SAFETY: the pointer is only stored and handed to SQLite, which guards the memory by its own locks and barriers.
unsafe impl Send for Region {}

impl Region {
    pub(super) fn new(bytes: usize) -> Region {
        // Of words, since SQLite wants it aligned to 8.
        Region(
            Box::leak(vec![0u64; bytes.div_ceil(8)].into_boxed_slice())
                .as_mut_ptr()
                .cast(),
        )
    }
}

/// What SQLite allocates per open file.
#[repr(C)]
struct OpenFile {
    base: ffi::sqlite3_file,
    open: *mut Open,
}

struct Open {
    disk: Disk,
    handle: Handle,
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

pub(super) fn unique_name() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    format!("forgetful-disk-{}", COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// Makes the disk known to SQLite by its name, for the rest of the process.
pub(super) fn register(disk: &Disk) {
    let name = CString::new(disk.name())
        .expect("a name has no zero byte")
        .into_raw();
    let disk = Box::into_raw(Box::new(disk.clone()));
    // SAFETY: a null name asks for the default file layer, which always exists; its pointer stays valid and is only copied.
    let system = unsafe { ptr::read(ffi::sqlite3_vfs_find(ptr::null())) };
    // Time, sleep and randomness of the system ignore which layer they are called through.
    let layer = ffi::sqlite3_vfs {
        iVersion: 2,
        szOsFile: size_of::<OpenFile>() as c_int,
        mxPathname: LONGEST_PATH,
        pNext: ptr::null_mut(),
        zName: name,
        pAppData: disk.cast(),
        xOpen: Some(open),
        xDelete: Some(delete),
        xAccess: Some(access),
        xFullPathname: Some(full_pathname),
        xDlOpen: None,
        xDlError: None,
        xDlSym: None,
        xDlClose: None,
        xSetSystemCall: None,
        xGetSystemCall: None,
        xNextSystemCall: None,
        ..system
    };
    // SAFETY: the layer and all it points to are leaked, hence valid for ever.
    let registered = unsafe { ffi::sqlite3_vfs_register(Box::leak(Box::new(layer)), 0) };
    assert_eq!(registered, ffi::SQLITE_OK);
}

fn code(fault: Fault) -> c_int {
    match fault {
        Fault::Full => ffi::SQLITE_FULL,
        Fault::Failed => ffi::SQLITE_IOERR,
        Fault::SyncFailed => ffi::SQLITE_IOERR_FSYNC,
        Fault::Busy => ffi::SQLITE_BUSY,
        Fault::NotFound => ffi::SQLITE_CANTOPEN,
    }
}

fn done(result: Result<(), Fault>) -> c_int {
    result.map_or_else(code, |()| ffi::SQLITE_OK)
}

/// SAFETY: `layer` must be one that [`register`] made.
unsafe fn disk<'a>(layer: *mut ffi::sqlite3_vfs) -> &'a Disk {
    // SAFETY: `pAppData` is a leaked disk.
    unsafe { &*(*layer).pAppData.cast::<Disk>() }
}

/// SAFETY: `file` must be one that [`open`] filled and [`close`] did not yet empty, used by this thread alone.
unsafe fn opened<'a>(file: *mut ffi::sqlite3_file) -> &'a mut Open {
    // SAFETY: `open` put a leaked `Open` there.
    unsafe { &mut *(*file.cast::<OpenFile>()).open }
}

/// SAFETY: `path` must be null or a C string.
unsafe fn text(path: *const c_char) -> String {
    if path.is_null() {
        return unique_name();
    }
    // SAFETY: as promised.
    unsafe { CStr::from_ptr(path) }
        .to_string_lossy()
        .into_owned()
}

unsafe extern "C" fn open(
    layer: *mut ffi::sqlite3_vfs,
    path: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    flags_used: *mut c_int,
) -> c_int {
    let create = flags & ffi::SQLITE_OPEN_CREATE != 0 || path.is_null();
    // SAFETY: SQLite's own pointers; `file` has room for `szOsFile` bytes, `flags_used` may be null.
    unsafe {
        let file = file.cast::<OpenFile>();
        (*file).base.pMethods = ptr::null();
        let disk = disk(layer).clone();
        let opened = disk.state().open(&text(path), create);
        match opened {
            Err(fault) => code(fault),
            Ok(handle) => {
                (*file).open = Box::into_raw(Box::new(Open { disk, handle }));
                (*file).base.pMethods = &METHODS;
                if !flags_used.is_null() {
                    *flags_used = flags;
                }
                ffi::SQLITE_OK
            }
        }
    }
}

unsafe extern "C" fn delete(layer: *mut ffi::sqlite3_vfs, path: *const c_char, _: c_int) -> c_int {
    // SAFETY: SQLite's own pointers.
    let deleted = unsafe { disk(layer).state().delete(&text(path)) };
    deleted.map_or(ffi::SQLITE_IOERR_DELETE_NOENT, |()| ffi::SQLITE_OK)
}

unsafe extern "C" fn access(
    layer: *mut ffi::sqlite3_vfs,
    path: *const c_char,
    _: c_int,
    result: *mut c_int,
) -> c_int {
    // SAFETY: SQLite's own pointers.
    unsafe { *result = c_int::from(disk(layer).state().exists(&text(path))) };
    ffi::SQLITE_OK
}

unsafe extern "C" fn full_pathname(
    _: *mut ffi::sqlite3_vfs,
    path: *const c_char,
    capacity: c_int,
    full: *mut c_char,
) -> c_int {
    // SAFETY: `full` has room for `capacity` bytes, and the path with its zero is no longer than that.
    unsafe {
        let bytes = CStr::from_ptr(path).to_bytes_with_nul();
        if bytes.len() > capacity as usize {
            return ffi::SQLITE_CANTOPEN;
        }
        ptr::copy_nonoverlapping(bytes.as_ptr().cast(), full, bytes.len());
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: the `Open` was leaked by `open`, and no call comes after this one.
    let mut open = unsafe { Box::from_raw((*file.cast::<OpenFile>()).open) };
    let Open { disk, handle } = &mut *open;
    disk.state().unlock_slots(handle, u8::MAX);
    disk.state().unlock(handle, ffi::SQLITE_LOCK_NONE);
    ffi::SQLITE_OK
}

unsafe extern "C" fn read(
    file: *mut ffi::sqlite3_file,
    buffer: *mut c_void,
    length: c_int,
    offset: i64,
) -> c_int {
    // SAFETY: an open file, and a buffer of `length` bytes.
    let (Open { disk, handle }, buffer) = unsafe {
        (
            opened(file),
            std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length as usize),
        )
    };
    match disk.state().read(handle, offset as u64, buffer) {
        Ok(read) if read == buffer.len() => ffi::SQLITE_OK,
        Ok(read) => {
            buffer[read..].fill(0);
            ffi::SQLITE_IOERR_SHORT_READ
        }
        Err(fault) => code(fault),
    }
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    bytes: *const c_void,
    length: c_int,
    offset: i64,
) -> c_int {
    // SAFETY: an open file, and `length` readable bytes.
    let (Open { disk, handle }, bytes) = unsafe {
        (
            opened(file),
            std::slice::from_raw_parts(bytes.cast::<u8>(), length as usize),
        )
    };
    done(disk.state().write(handle, offset as u64, bytes))
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, length: i64) -> c_int {
    // SAFETY: an open file.
    let Open { disk, handle } = unsafe { opened(file) };
    done(disk.state().truncate(handle, length as u64))
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, _: c_int) -> c_int {
    // SAFETY: an open file.
    let Open { disk, handle } = unsafe { opened(file) };
    done(disk.state().sync(handle))
}

unsafe extern "C" fn file_size(file: *mut ffi::sqlite3_file, length: *mut i64) -> c_int {
    // SAFETY: an open file, and room for the answer.
    let (Open { disk, handle }, length) = unsafe { (opened(file), &mut *length) };
    done(
        disk.state()
            .length(handle)
            .map(|bytes| *length = bytes as i64),
    )
}

unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: an open file.
    let Open { disk, handle } = unsafe { opened(file) };
    done(disk.state().lock(handle, level))
}

unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: an open file.
    let Open { disk, handle } = unsafe { opened(file) };
    disk.state().unlock(handle, level);
    ffi::SQLITE_OK
}

unsafe extern "C" fn check_reserved_lock(
    file: *mut ffi::sqlite3_file,
    result: *mut c_int,
) -> c_int {
    // SAFETY: an open file, and room for the answer.
    let (Open { disk, handle }, result) = unsafe { (opened(file), &mut *result) };
    done(
        disk.state()
            .is_reserved(handle)
            .map(|reserved| *result = c_int::from(reserved)),
    )
}

unsafe extern "C" fn file_control(_: *mut ffi::sqlite3_file, _: c_int, _: *mut c_void) -> c_int {
    ffi::SQLITE_NOTFOUND
}

unsafe extern "C" fn sector_size(_: *mut ffi::sqlite3_file) -> c_int {
    512
}

/// As the system's own layer: a write that the power loss cut harms no bytes beside it.
unsafe extern "C" fn device_characteristics(_: *mut ffi::sqlite3_file) -> c_int {
    ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE
}

unsafe extern "C" fn shm_map(
    file: *mut ffi::sqlite3_file,
    index: c_int,
    bytes: c_int,
    extend: c_int,
    address: *mut *mut c_void,
) -> c_int {
    // SAFETY: an open file, and room for the answer.
    let (Open { disk, handle }, address) = unsafe { (opened(file), &mut *address) };
    let region = disk
        .state()
        .region(handle, index as usize, bytes as usize, extend != 0);
    done(region.map(|region| *address = region.map_or(ptr::null_mut(), |region| region.0)))
}

unsafe extern "C" fn shm_lock(
    file: *mut ffi::sqlite3_file,
    first: c_int,
    count: c_int,
    flags: c_int,
) -> c_int {
    // SAFETY: an open file.
    let Open { disk, handle } = unsafe { opened(file) };
    let slots = (((1u32 << count) - 1) << first) as u8;
    if flags & ffi::SQLITE_SHM_UNLOCK != 0 {
        disk.state().unlock_slots(handle, slots);
        return ffi::SQLITE_OK;
    }
    done(
        disk.state()
            .lock_slots(handle, slots, flags & ffi::SQLITE_SHM_EXCLUSIVE != 0),
    )
}

unsafe extern "C" fn shm_barrier(_: *mut ffi::sqlite3_file) {
    fence(Ordering::SeqCst);
}

unsafe extern "C" fn shm_unmap(file: *mut ffi::sqlite3_file, _: c_int) -> c_int {
    // SAFETY: an open file.
    let Open { disk, handle } = unsafe { opened(file) };
    disk.state().unlock_slots(handle, u8::MAX);
    ffi::SQLITE_OK
}
