//! How full a disk is: server, nodes and `doctor` look at theirs in one way, and tell it as [`model::machine::Disk`].

use std::io;
use std::path::Path;

use model::machine::{Counted, Disk};

/// That of the file system which a file or folder lies on. Waits for as long as that takes to answer.
pub fn look(path: &Path) -> io::Result<Disk> {
    let found = rustix::fs::statvfs(path)?;
    Ok(Disk::from(Counted {
        f_frsize: found.f_frsize,
        f_blocks: found.f_blocks,
        f_bfree: found.f_bfree,
        f_bavail: found.f_bavail,
        f_files: found.f_files,
        f_ffree: found.f_ffree,
        f_favail: found.f_favail,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_the_disk_that_it_lies_on_and_what_is_not_there_has_none() {
        let here = look(Path::new(".")).unwrap();
        assert!(here.size.0 > 0 && here.free <= here.size);
        let nowhere = look(Path::new("/no/such/folder")).unwrap_err();
        assert_eq!(nowhere.kind(), io::ErrorKind::NotFound);
    }
}
