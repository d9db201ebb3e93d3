//! What the machine of a node has: the room on its disk, and the programs that engines run on.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::control::Reason;
use crate::units::Bytes;

/// From so many percent on, a disk is warned of.
pub const DISK_FILLING: u64 = 80;
/// From so many percent on, a disk is as good as full.
pub const DISK_FULL: u64 = 95;

/// The key of PostgreSQL in [`Programs`].
pub const POSTGRES: &str = "postgres";

/// The major versions that a machine has of each program that engines run on: `postgres` → 15, 16. What is not listed is not there.
pub type Programs = BTreeMap<String, BTreeSet<u32>>;

/// The file system that a directory lies on, as `df` counts it: what is kept for root is not counted, since services can't have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Disk {
    /// What is used and what is free.
    pub size: Bytes,
    pub free: Bytes,
    /// The files that there can be, used and free. 0: as many as there is room for.
    #[serde(default)]
    pub files: u64,
    #[serde(default)]
    pub files_free: u64,
}

/// How full a disk is, as far as a person must act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fill {
    Well,
    /// 80 % and more.
    Filling,
    /// 95 % and more.
    Full,
}

/// What `statvfs` tells, under the names that it has there.
#[derive(Debug, Clone, Copy)]
pub struct Counted {
    pub f_frsize: u64,
    pub f_blocks: u64,
    pub f_bfree: u64,
    pub f_bavail: u64,
    pub f_files: u64,
    pub f_ffree: u64,
    pub f_favail: u64,
}

impl From<Counted> for Disk {
    fn from(counted: Counted) -> Self {
        let bytes = |blocks: u64| Bytes(blocks.saturating_mul(counted.f_frsize));
        let used = counted.f_blocks.saturating_sub(counted.f_bfree);
        let files_used = counted.f_files.saturating_sub(counted.f_ffree);
        Self {
            size: bytes(used.saturating_add(counted.f_bavail)),
            free: bytes(counted.f_bavail),
            files: match counted.f_files {
                0 => 0,
                _ => files_used.saturating_add(counted.f_favail),
            },
            files_free: counted.f_favail,
        }
    }
}

impl Disk {
    /// Percent of the room that is used, rounded up as `df` does.
    pub fn used_percent(&self) -> u64 {
        percent(self.size.0, self.free.0)
    }

    /// Percent of the files that are used; 0 where they are not counted.
    pub fn files_percent(&self) -> u64 {
        percent(self.files, self.files_free)
    }

    pub fn fill(&self) -> Fill {
        match self.used_percent().max(self.files_percent()) {
            DISK_FULL.. => Fill::Full,
            DISK_FILLING.. => Fill::Filling,
            _ => Fill::Well,
        }
    }

    /// What a person should know of a disk, and do; `None` while there is room. `whose`: `node a`.
    pub fn trouble(&self, whose: &str) -> Option<Reason> {
        let fill = self.fill();
        let what = match self.files_percent() > self.used_percent() {
            true => format!(
                "{} % of the files that it can hold are there, {} more can be made",
                self.files_percent(),
                self.files_free
            ),
            false => format!(
                "{} % full, {} of {} are free",
                self.used_percent(),
                rounded(self.free),
                rounded(self.size)
            ),
        };
        match fill {
            Fill::Well => None,
            Fill::Filling => Some(Reason::new(
                "disk-filling",
                format!(
                    "the disk of {whose} fills: {what}: make room, or give it a larger disk, before nothing can be written"
                ),
            )),
            Fill::Full => Some(Reason::new(
                "disk-full",
                format!(
                    "the disk of {whose} is as good as full: {what}: make room now; what can't be written there is refused: deploys, starts, messages, commits"
                ),
            )),
        }
    }
}

fn percent(all: u64, free: u64) -> u64 {
    let used = all.saturating_sub(free);
    match all {
        0 => 0,
        all => u64::try_from((u128::from(used) * 100).div_ceil(u128::from(all))).unwrap_or(100),
    }
}

/// For people: never more than there is.
fn rounded(bytes: Bytes) -> String {
    match bytes.0 >> 20 {
        mebibytes @ 0..10_240 => format!("{mebibytes} MiB"),
        mebibytes => format!("{} GiB", mebibytes >> 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(size: u64, free: u64, files: u64, files_free: u64) -> Disk {
        Disk {
            size: Bytes(size),
            free: Bytes(free),
            files,
            files_free,
        }
    }

    #[test]
    fn a_disk_is_warned_of_at_80_percent_and_named_full_at_95() {
        let table = [
            ((0, 0, 0, 0), Fill::Well),
            ((1000, 1000, 0, 0), Fill::Well),
            ((1000, 210, 0, 0), Fill::Well),
            ((1000, 200, 0, 0), Fill::Filling),
            ((1000, 60, 0, 0), Fill::Filling),
            ((1000, 50, 0, 0), Fill::Full),
            ((1000, 0, 0, 0), Fill::Full),
            // A disk that has room and can't take another file.
            ((1000, 900, 100, 20), Fill::Filling),
            ((1000, 900, 100, 0), Fill::Full),
            ((u64::MAX, 0, u64::MAX, u64::MAX), Fill::Full),
        ];
        for ((size, free, files, files_free), fill) in table {
            let disk = disk(size, free, files, files_free);
            assert_eq!(disk.fill(), fill, "{disk:?}");
            assert_eq!(disk.trouble("node a").is_some(), fill != Fill::Well);
        }
    }

    #[test]
    fn what_is_said_of_a_disk_names_whose_it_is_and_how_much_is_left() {
        let said = |disk: Disk| disk.trouble("node a").unwrap();
        let filling = said(disk(100 << 30, 15 << 30, 0, 0));
        assert_eq!(filling.code, "disk-filling");
        assert!(
            filling
                .message
                .starts_with("the disk of node a fills: 85 % full, 15 GiB of 100 GiB are free"),
            "{filling}"
        );
        let full = said(disk(100 << 20, 1 << 20, 0, 0));
        assert_eq!(full.code, "disk-full");
        assert!(
            full.message.contains("99 % full, 1 MiB of 100 MiB"),
            "{full}"
        );
        let files = said(disk(1000, 900, 100, 10));
        assert!(
            files
                .message
                .contains("90 % of the files that it can hold are there, 10 more can be made"),
            "{files}"
        );
    }

    #[test]
    fn what_is_kept_for_root_is_no_room() {
        let counted = Counted {
            f_frsize: 4096,
            f_blocks: 1000,
            f_bfree: 50,
            f_bavail: 0,
            f_files: 0,
            f_ffree: 0,
            f_favail: 0,
        };
        let disk = Disk::from(counted);
        assert_eq!((disk.used_percent(), disk.files), (100, 0));
    }
}
