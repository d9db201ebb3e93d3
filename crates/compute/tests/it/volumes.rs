//! Whose files in a volume are, and what root does with what a workload has planted there.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use compute::runtime::Identity;
use compute::volume::{AT_A_START, Bounds, foreign, take_over};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use tempfile::TempDir;

const BEFORE: u32 = 61_240;
const NOW: Identity = Identity {
    uid: 61_241,
    gid: 61_241,
};

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        println!("not root: nothing can be given away");
    }
    is_root
}

fn file(path: &Path, owner: u32) {
    fs::write(path, "x").expect("written");
    chown(path, Some(owner), Some(owner)).expect("given");
}

fn folder(path: &Path, owner: u32) {
    fs::create_dir(path).expect("made");
    chown(path, Some(owner), Some(owner)).expect("given");
}

fn owner(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("its owner").uid()
}

#[test]
fn a_volume_of_another_changes_hands_and_nothing_outside_does() {
    if !is_root() {
        return;
    }
    let place = TempDir::new().expect("a place");
    let at = |path: &str| place.path().join(path);
    folder(&at("outside"), 0);
    file(&at("outside/secret"), 0);
    file(&at("hard"), 0);
    folder(&at("volume"), BEFORE);
    folder(&at("volume/sub"), BEFORE);
    file(&at("volume/sub/own"), BEFORE);
    file(&at("volume/sub/of-root"), 0);
    fs::hard_link(at("hard"), at("volume/hard")).expect("linked");
    for (target, link) in [
        (at("outside"), "volume/link"),
        (at("outside/secret"), "volume/sub/link"),
    ] {
        symlink(target, at(link)).expect("linked");
        lchown(at(link), Some(BEFORE), Some(BEFORE)).expect("given");
    }

    take_over(&at("volume"), NOW).expect("taken over");
    for path in ["volume", "volume/sub", "volume/sub/own", "volume/link"] {
        assert_eq!(owner(&at(path)), NOW.uid, "{path}");
    }
    for path in ["outside", "outside/secret", "hard", "volume/sub/of-root"] {
        assert_eq!(owner(&at(path)), 0, "{path}");
    }
    // What is its own already is not gone through again.
    file(&at("volume/later"), BEFORE);
    take_over(&at("volume"), NOW).expect("nothing to do");
    assert_eq!(owner(&at("volume/later")), BEFORE);
}

/// A folder that becomes a link to another place between two looks.
#[test]
fn who_bends_names_meanwhile_is_given_nothing_outside() {
    if !is_root() {
        return;
    }
    let place = TempDir::new().expect("a place");
    let at = |path: &str| place.path().join(path);
    folder(&at("outside"), BEFORE);
    for number in 0..20 {
        file(&at(&format!("outside/{number}")), BEFORE);
    }
    folder(&at("volume"), BEFORE);
    folder(&at("volume/sub"), BEFORE);
    file(&at("volume/sub/own"), BEFORE);
    symlink(at("outside"), at("volume/bent")).expect("linked");

    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let bends = scope.spawn(|| {
            let mut turns = 0_u32;
            while !over.load(Ordering::Relaxed) {
                let exchanged = renameat_with(
                    CWD,
                    at("volume/sub"),
                    CWD,
                    at("volume/bent"),
                    RenameFlags::EXCHANGE,
                );
                exchanged.expect("exchanged");
                turns += 1;
            }
            turns
        });
        for _ in 0..1000 {
            chown(at("volume"), Some(BEFORE), Some(BEFORE)).expect("given back");
            // Broken off where it met a link: that is right as well.
            let _ = take_over(&at("volume"), NOW);
            let _ = foreign(&at("volume"), NOW, AT_A_START);
        }
        over.store(true, Ordering::Relaxed);
        assert!(bends.join().expect("it bent") > 100);
    });
    for number in 0..20 {
        assert_eq!(owner(&at(&format!("outside/{number}"))), BEFORE);
    }
}

#[test]
fn files_of_another_are_found_where_they_can_not_be_used() {
    if !is_root() {
        return;
    }
    let place = TempDir::new().expect("a place");
    let volume = place.path().join("volume");
    folder(&volume, NOW.uid);
    folder(&volume.join("sub"), NOW.uid);
    file(&volume.join("sub/own"), NOW.uid);
    symlink("/etc/shadow", volume.join("link")).expect("linked");
    let find = || foreign(&volume, NOW, AT_A_START).expect("looked at");
    assert_eq!(find(), None);

    // What everybody may read and write is no hindrance.
    file(&volume.join("sub/shared"), 0);
    let mode = fs::Permissions::from_mode(0o666);
    fs::set_permissions(volume.join("sub/shared"), mode).expect("its mode");
    assert_eq!(find(), None);

    folder(&volume.join("restored"), 0);
    file(&volume.join("restored/a"), 0);
    file(&volume.join("restored/b"), BEFORE);
    let found = find().expect("found");
    assert_eq!((found.count, found.more, found.owner), (3, false, 0));
    assert_eq!(found.example, Path::new("restored"));

    // However much there is, it is looked at within bounds.
    for number in 0..50 {
        file(&volume.join(format!("many-{number}")), 0);
    }
    let few = Bounds {
        entries: 40,
        time: Duration::from_secs(60),
    };
    let found = foreign(&volume, NOW, few).expect("looked at");
    let found = found.expect("found");
    assert!(found.more && found.count <= 40, "{found:?}");
    let at_once = Bounds {
        entries: usize::MAX,
        time: Duration::ZERO,
    };
    assert_eq!(foreign(&volume, NOW, at_once).expect("not looked at"), None);
}
