//! Removing what a workload has made.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use compute::beneath::{remove_moved, remove_tree};
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use tempfile::TempDir;

/// More than descriptors that a process may have open, where that is much, and than frames that fit on a stack.
const LEVELS: usize = 25_000;

/// Folders in folders, as a program makes them by `mkdir` and `chdir`, with a file in each.
fn dig(place: &Path, levels: usize) {
    fs::create_dir_all(place).expect("made");
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut at = openat(CWD, place, flags, Mode::empty()).expect("opened");
    for level in 0..levels {
        mkdirat(&at, "deeper", Mode::RWXU).expect("made");
        if level % 1000 == 0 {
            let file = OFlags::WRONLY | OFlags::CREATE;
            openat(&at, "file", file, Mode::RUSR).expect("made");
        }
        at = openat(&at, "deeper", flags, Mode::empty()).expect("opened");
    }
}

#[test]
fn no_depth_is_too_deep() {
    // A disk takes milliseconds for each.
    let place = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new());
    let place = place.expect("a place");
    let tree = place.path().join("tree");
    dig(&tree.join("one"), LEVELS);
    dig(&tree.join("other"), 100);
    let (removed, after) = std::thread::Builder::new()
        // A quarter of what threads have.
        .stack_size(512 << 10)
        .spawn(move || (remove_tree(&tree), tree.exists()))
        .expect("a thread")
        .join()
        .expect("it ends");
    removed.expect("removed");
    assert!(!after);
}

#[test]
fn all_of_a_tree_goes_and_nothing_that_its_links_name() {
    let place = TempDir::new().expect("a place");
    let (tree, outside) = (place.path().join("tree"), place.path().join("outside"));
    fs::create_dir_all(outside.join("folder")).expect("made");
    fs::write(outside.join("file"), "x").expect("written");
    for folder in ["", "a", "a/b", "a/b/c"] {
        let at = tree.join(folder);
        fs::create_dir_all(&at).expect("made");
        for number in 0..40 {
            fs::create_dir_all(at.join(format!("wide-{number}/below/it"))).expect("made");
            fs::write(at.join(format!("file-{number}")), "x").expect("written");
        }
        symlink(&outside, at.join("out")).expect("linked");
        symlink(outside.join("file"), at.join("out-file")).expect("linked");
        symlink("..", at.join("up")).expect("linked");
        // Names that are used while it goes.
        fs::write(at.join(".removing-2"), "x").expect("written");
        fs::create_dir_all(at.join(".removing-3/full/of/it")).expect("made");
        fs::create_dir_all(at.join(".removing-4")).expect("made");
    }
    fs::set_permissions(tree.join("a/b"), PermissionsExt::from_mode(0o700)).expect("set");
    remove_tree(&tree).expect("removed");
    assert!(!tree.exists());
    assert!(outside.join("folder").exists() && outside.join("file").exists());
    // What is not there, a file, and a link are fine as well.
    remove_tree(&tree).expect("nothing to remove");
    for name in ["file", "link"] {
        let at = place.path().join(name);
        match name {
            "file" => fs::write(&at, "x").expect("written"),
            _ => symlink(&outside, &at).expect("linked"),
        }
        remove_tree(&at).expect("removed");
        assert!(at.symlink_metadata().is_err(), "{name}");
    }
    assert!(outside.join("file").exists());
}

/// A volume on a disk of its own: it is emptied, and what can't be is said.
#[test]
fn another_file_system_in_it_is_emptied_and_stays() {
    let place = TempDir::new().expect("a place");
    let disk = place.path().join("tree/0/data");
    fs::create_dir_all(&disk).expect("made");
    let mount = |words: &[&str]| {
        let done = Command::new(words[0]).args(&words[1..]).arg(&disk).output();
        done.is_ok_and(|done| done.status.success())
    };
    if !mount(&["mount", "-t", "tmpfs", "tmpfs"]) {
        return eprintln!("not root, or nothing can be mounted here");
    }
    fs::create_dir_all(disk.join("a/b/c")).expect("made");
    fs::write(disk.join("a/b/file"), "x").expect("written");
    let removed = remove_tree(&place.path().join("tree"));
    let left = fs::read_dir(&disk).map(Iterator::count);
    assert!(mount(&["umount"]), "unmounted");
    assert_eq!(left.expect("there"), 0);
    let error = removed.expect_err("it is mounted");
    assert_eq!(error.kind(), std::io::ErrorKind::ResourceBusy);
    remove_tree(&place.path().join("tree")).expect("removed");
}

/// What a service keeps to itself it keeps to itself while it goes, and where it can't go.
#[test]
fn nothing_of_a_tree_is_opened_to_others_while_it_goes() {
    let place = TempDir::new().expect("a place");
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("set");
    };
    // As an instance, or the volumes of a service: a passage, and in it what is the service's alone.
    let top = place.path().join("web-1");
    let (private, open) = (top.join("data"), top.join("data/uploads"));
    let stuck = open.join("disk");
    fs::create_dir_all(&stuck).expect("made");
    fs::write(open.join("secret"), "x").expect("written");
    for (path, of) in [(place.path(), 0o711), (&*top, 0o711), (&*private, 0o700)] {
        mode(path, of);
    }
    mode(&open, 0o777);
    let mounted = |words: &[&str]| {
        let done = Command::new(words[0])
            .args(&words[1..])
            .arg(&stuck)
            .output();
        done.is_ok_and(|done| done.status.success())
    };
    if !mounted(&["mount", "-t", "tmpfs", "tmpfs"]) {
        return eprintln!("not root, or nothing can be mounted here");
    }
    let removed = remove_tree(&top);
    let moved = top.join(".removing-1");
    let (is_moved, as_another) = (moved.exists(), {
        let mut look = Command::new("ls");
        look.arg(&moved).uid(65_534).gid(65_534);
        look.output().expect("run").status.success()
    });
    // Made anew in its place: what is in the way is named, and nothing is opened.
    let again = remove_moved(&top);
    let unmounted = Command::new("umount").arg(moved.join("disk")).output();
    let unmounted = unmounted.is_ok_and(|done| done.status.success()) || mounted(&["umount"]);
    assert!(unmounted);
    assert!(removed.is_err() && again.is_err());
    assert!(is_moved, "it was moved up, with what is mounted in it");
    assert!(!as_another, "another user has looked into it");
    remove_moved(&top).expect("removed");
    assert!(!moved.exists());
    remove_tree(&top).expect("removed");
}
