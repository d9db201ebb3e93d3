//! Storing and unpacking.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use compute::artifact::store::Progress;
use compute::artifact::unpack::unpack;
use compute::artifact::{ArtifactStore, Error, digest_of};
use model::compute::{ArtifactForm, ArtifactRef};
use model::ids::Digest;
use model::units::Bytes;
use tempfile::TempDir;

use crate::packed;

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

/// Reading one of many gigabytes takes a minute.
#[test]
fn nobody_waits_while_the_upload_of_another_is_read() {
    let root = folder();
    let store = ArtifactStore::open(root.path()).expect("opened");
    let [large, small] = ["large", "small"].map(|text| digest_of(text.as_bytes()).expect("read").0);
    let size = Bytes(6 << 30);
    store.begin(large, size).expect("begun");
    let path = root
        .path()
        .join(format!("incoming/{}-{}", large.hex(), size.0));
    let file = fs::OpenOptions::new().write(true).open(&path);
    let file = file.expect("opened");
    file.set_len(size.0).expect("all of it is here");
    std::thread::scope(|scope| {
        let checking = scope.spawn(|| store.check(large));
        until_read(&path);
        let begun = store.begin(small, Bytes(5)).expect("begun");
        assert_eq!(begun, Progress::Partial { received: 0 });
        store.append(small, 0, b"small").expect("taken");
        store.commit(small).expect("placed");
        let before = SystemTime::now() + Duration::from_secs(60);
        store.remove_stale_uploads(before).expect("looked at");
        assert!(!checking.is_finished(), "nobody waited for it");
        assert!(path.exists(), "what is being read is not stale");
        file.set_len(3).expect("its end comes sooner");
        let checked = checking.join().expect("no panic");
        assert!(
            matches!(checked, Err(Error::Mismatch { .. })),
            "{checked:?}"
        );
    });
}

/// Until somebody has opened it besides us.
fn until_read(path: &Path) {
    let is_it = |entry: &fs::DirEntry| fs::read_link(entry.path()).is_ok_and(|file| file == path);
    let open = || fs::read_dir("/proc/self/fd").expect("listed").flatten();
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while open().filter(is_it).count() < 2 {
        assert!(std::time::Instant::now() < deadline, "it is read");
        std::thread::yield_now();
    }
}

/// `experience` has a test that packs the same folder and finds the same digest: what is packed there is what is unpacked here.
#[test]
fn a_folder_is_unpacked_as_it_was_packed() {
    let entries = [
        packed::folder("bin", 0o755),
        packed::file("bin/checkout", 0o755, "#!/bin/sh\nexec true\n"),
        packed::link("bin/latest", "checkout"),
        packed::folder("data", 0o750),
        packed::folder("data/empty", 0o700),
        packed::file("data/é.txt", 0o640, "é\n"),
        packed::file(&"n".repeat(120), 0o600, ""),
    ];
    let (reference, tar) = packed::pack(&entries);
    assert_eq!(
        reference.digest.to_string(),
        "sha256:4d0ee80a4ba730cf34ef33e656e06774da2a619ee446cc9d84e5427deb28e312"
    );
    let target = folder();
    let file = target.path().join("artifact");
    fs::write(&file, tar).expect("written");
    let work = target.path().join("work");
    unpack(&reference, &file, &work, None).expect("unpacked");
    assert_eq!(packed::found(&work), entries);
}

#[test]
fn a_file_is_placed_under_its_name() {
    for (executable, mode) in [(true, 0o755), (false, 0o644)] {
        let target = folder();
        let source = target.path().join("artifact");
        fs::write(&source, CONTENT).expect("written");
        let work = target.path().join("work");
        unpack(&a_file("bin/checkout", executable), &source, &work, None).expect("unpacked");
        let placed = work.join("bin/checkout");
        assert_eq!(fs::read(&placed).expect("placed"), CONTENT);
        let permissions = fs::metadata(&placed).expect("placed").permissions();
        assert_eq!(permissions.mode() & 0o7777, mode);
        let escaping = unpack(&a_file("../escaped", executable), &source, &work, None);
        assert!(matches!(escaping, Err(Error::UnsafePath(_))));
        assert!(!target.path().join("escaped").exists());
    }
}

fn a_file(name: &str, executable: bool) -> ArtifactRef {
    let name = name.to_owned();
    ArtifactRef {
        digest: digest(),
        form: ArtifactForm::File { name, executable },
        size: Bytes(CONTENT.len() as u64),
    }
}

/// A tar of one entry with any path, as an attacker would write it.
fn hostile(name: &str, kind: tar::EntryType, target: &str) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    let field = &mut header.as_gnu_mut().expect("gnu").name;
    field[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    if !target.is_empty() {
        header.set_link_name_literal(target).expect("a target");
    }
    header.set_size(0);
    header.set_cksum();
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&header, std::io::empty()).expect("appended");
    builder.into_inner().expect("a tar")
}

#[test]
fn a_hostile_tar_writes_nothing_outside() {
    use tar::EntryType::{Block, Link, Regular, Symlink};
    let table = [
        ("../escaped", Regular, ""),
        ("a/../../escaped", Regular, ""),
        ("/tmp/escaped", Regular, ""),
        ("a", Symlink, "../outside"),
        ("a", Symlink, "/etc"),
        ("a", Link, "/etc/passwd"),
        ("a", Block, ""),
    ];
    for (name, kind, target) in table {
        let root = folder();
        let file = root.path().join("artifact");
        fs::write(&file, hostile(name, kind, target)).expect("written");
        let reference = ArtifactRef {
            digest: Digest([0; 32]),
            form: ArtifactForm::Folder,
            size: Bytes(0),
        };
        let result = unpack(&reference, &file, &root.path().join("work"), None);
        assert!(result.is_err(), "{name} {kind:?}");
        assert!(!root.path().join("escaped").exists());
    }
}

/// Entries that are each allowed, and lead out together. What lies outside is looked at, and a tar is refused rather than unpacked in part.
#[test]
fn links_of_an_artifact_lead_nothing_out_of_it() {
    let deep = |name: &str, target: &str| packed::link(&format!("a/b/c/d/{name}"), target);
    let up = || deep("up", "../../../..");
    let tars = [
        // `up` is the root itself, so `up/out` lies in it, and leads out.
        vec![
            up(),
            deep("up/out", "../../../../../outside"),
            deep("up/out/planted", "../../../../../anywhere"),
        ],
        vec![up(), deep("up/out/deeper/planted", "../x")],
        vec![packed::link("a", "."), packed::link("a/x", "y")],
        vec![packed::link("a", "."), packed::folder("a/x", 0o755)],
        vec![
            packed::link("a", "."),
            packed::folder("b", 0o755),
            packed::file("a/b/x", 0o644, "x"),
        ],
        vec![packed::file("a", 0o644, ""), packed::link("a/x", "y")],
        vec![packed::link("a", "x"), packed::link("a", "y")],
    ];
    for entries in tars {
        let place = folder();
        let outside = place.path().join("outside");
        fs::create_dir(&outside).expect("made");
        let (reference, tar) = packed::pack(&entries);
        let file = place.path().join("artifact");
        fs::write(&file, tar).expect("written");
        let work = place.path().join("work");
        let unpacked = unpack(&reference, &file, &work, None);
        assert!(unpacked.is_err(), "{entries:?}");
        let escaped = fs::read_dir(&outside).expect("there").count();
        assert_eq!(escaped, 0, "{entries:?}");
        assert_eq!(fs::read_dir(place.path()).expect("there").count(), 3);
    }
}

/// Whoever put them there: a link in the place of a folder, or of the directory itself, is not gone through.
#[test]
fn nothing_is_unpacked_through_a_link_that_stands_there() {
    let entries = [
        packed::folder("sub", 0o700),
        packed::file("sub/file", 0o644, "x"),
        packed::link("sub/link", "file"),
    ];
    let (reference, tar) = packed::pack(&entries);
    let alone = |entry: usize| packed::pack(&entries[entry..=entry]);
    for (reference, tar) in [(reference, tar), alone(0), alone(1), alone(2)] {
        let place = folder();
        let outside = place.path().join("outside");
        fs::create_dir(&outside).expect("made");
        fs::set_permissions(&outside, PermissionsExt::from_mode(0o755)).expect("set");
        let file = place.path().join("artifact");
        fs::write(&file, tar).expect("written");
        let work = place.path().join("work");
        fs::create_dir(&work).expect("made");
        std::os::unix::fs::symlink(&outside, work.join("sub")).expect("linked");
        let unpacked = unpack(&reference, &file, &work, None);
        assert!(
            matches!(unpacked, Err(Error::NotInFolder(_))),
            "{unpacked:?}"
        );
        let linked = place.path().join("linked");
        std::os::unix::fs::symlink(&outside, &linked).expect("linked");
        assert!(unpack(&reference, &file, &linked, None).is_err());
        assert_eq!(fs::read_dir(&outside).expect("there").count(), 0);
        let mode = fs::metadata(&outside).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
    }
}

/// A name is read into memory, whatever length is said to be its: the bytes of an artifact may be 8 GiB.
#[test]
fn names_without_end_and_folders_without_number_are_refused() {
    let long_name = |size: u64| {
        let mut header = tar::Header::new_gnu();
        header.set_path("././@LongLink").expect("a name");
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_size(size);
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    let place = folder();
    let file = place.path().join("artifact");
    fs::write(&file, long_name(4 << 30)).expect("written");
    let sparse = fs::File::options().write(true).open(&file).expect("opened");
    // Without a block on the disk.
    sparse.set_len(512 + (4 << 30)).expect("grown");
    let reference = ArtifactRef {
        digest: Digest([0; 32]),
        form: ArtifactForm::Folder,
        size: Bytes(0),
    };
    let error = unpack(&reference, &file, &place.path().join("work"), None);
    let error = format!("{:?}", error.expect_err("refused"));
    assert!(error.contains("64 KiB"), "{error}");

    let deep = vec!["d"; 3000].join("/");
    let (reference, tar) = packed::pack(&[packed::file(&deep, 0o644, "")]);
    fs::write(&file, tar).expect("written");
    let work = place.path().join("deep");
    let error = unpack(&reference, &file, &work, None);
    let error = error.expect_err("refused").to_string();
    assert!(error.contains("File name too long"), "{error}");
    assert_eq!(fs::read_dir(&work).expect("there").count(), 0);
}

const CONTENT: &[u8] = b"the bytes of an artifact";

fn digest() -> Digest {
    digest_of(CONTENT).expect("a digest").0
}

fn filled(root: &Path) -> ArtifactStore {
    let store = ArtifactStore::open(root).expect("opened");
    store
        .begin(digest(), Bytes(CONTENT.len() as u64))
        .expect("begun");
    store.append(digest(), 0, CONTENT).expect("appended");
    store.commit(digest()).expect("committed");
    store
}

#[test]
fn an_upload_is_resumed_where_it_stopped_and_visible_when_whole() {
    let root = folder();
    let size = Bytes(CONTENT.len() as u64);
    let store = ArtifactStore::open(root.path()).expect("opened");
    assert_eq!(
        store.begin(digest(), size).expect("begun"),
        Progress::Partial { received: 0 }
    );
    assert_eq!(
        store.append(digest(), 0, &CONTENT[..10]).expect("appended"),
        10
    );
    assert!(matches!(
        store.append(digest(), 3, b"x"),
        Err(Error::Offset { expected: 10, .. })
    ));
    assert!(matches!(
        store.commit(digest()),
        Err(Error::Incomplete { received: 10, .. })
    ));
    assert!(!store.contains(digest()));
    drop(store);

    let store = ArtifactStore::open(root.path()).expect("opened again");
    assert_eq!(
        store.begin(digest(), size).expect("begun"),
        Progress::Partial { received: 10 }
    );
    assert!(matches!(
        store.append(digest(), 10, &[0; 100]),
        Err(Error::TooLarge { .. })
    ));
    store
        .append(digest(), 10, &CONTENT[10..])
        .expect("appended");
    store.commit(digest()).expect("committed");
    store.commit(digest()).expect("committed again");
    assert_eq!(
        store.begin(digest(), size).expect("begun"),
        Progress::Complete
    );
    let mut rest = String::new();
    store
        .read(digest(), 4)
        .expect("opened")
        .read_to_string(&mut rest)
        .expect("read");
    assert_eq!(rest, "bytes of an artifact");
    let listed: Vec<_> = store
        .list()
        .expect("a list")
        .iter()
        .map(|stored| (stored.digest, stored.size))
        .collect();
    assert_eq!(listed, [(digest(), size)]);
    store.remove(digest()).expect("removed");
    assert!(matches!(store.read(digest(), 0), Err(Error::Unknown(_))));
}

#[test]
fn wrong_bytes_never_become_visible_and_can_be_sent_again() {
    let root = folder();
    let store = ArtifactStore::open(root.path()).expect("opened");
    store.begin(digest(), Bytes(3)).expect("begun");
    store.append(digest(), 0, b"xyz").expect("appended");
    assert!(matches!(
        store.commit(digest()),
        Err(Error::Mismatch { .. })
    ));
    assert!(!store.contains(digest()));
    drop(store);
    assert!(filled(root.path()).contains(digest()));
}

#[test]
fn what_rots_on_disk_is_found_and_discarded() {
    let root = folder();
    let store = filled(root.path());
    store.verify(digest()).expect("right");
    fs::write(store.path(digest()), b"rotten").expect("written");
    assert!(matches!(
        store.verify(digest()),
        Err(Error::Mismatch { .. })
    ));
    assert!(matches!(store.verify(digest()), Err(Error::Unknown(_))));
}

#[test]
fn abandoned_uploads_are_given_up() {
    let root = folder();
    let store = ArtifactStore::open(root.path()).expect("opened");
    store.begin(digest(), Bytes(9)).expect("begun");
    store.append(digest(), 0, b"abc").expect("appended");
    store
        .remove_stale_uploads(SystemTime::now() - Duration::from_secs(60))
        .expect("cleaned");
    assert_eq!(
        store.begin(digest(), Bytes(9)).expect("begun"),
        Progress::Partial { received: 3 }
    );
    store
        .remove_stale_uploads(SystemTime::now() + Duration::from_secs(60))
        .expect("cleaned");
    assert_eq!(
        store.begin(digest(), Bytes(9)).expect("begun"),
        Progress::Partial { received: 0 }
    );
}
