//! Making, storing and unpacking.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use compute::artifact::store::Progress;
use compute::artifact::unpack::unpack;
use compute::artifact::{ArtifactStore, Error, Made, SIZE_MAX, digest_of, make};
use model::compute::{ArtifactForm, ArtifactRef};
use model::ids::Digest;
use model::units::Bytes;
use tempfile::TempDir;

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("its mode");
}

/// A folder with a program, a nested file, an empty folder and a symlink, made in the given order.
fn sample(reversed: bool) -> TempDir {
    let root = folder();
    let path = root.path();
    let mut names = ["b/nested", "checkout", "é"];
    if reversed {
        names.reverse();
    }
    fs::create_dir_all(path.join("b/empty")).expect("made");
    for name in names {
        fs::write(path.join(name), name).expect("written");
        mode(&path.join(name), 0o640);
    }
    mode(&path.join("checkout"), 0o755);
    symlink("../checkout", path.join("b/link")).expect("linked");
    root
}

fn made(source: &Path, name: &str) -> Result<Made, Error> {
    let spool = folder();
    let made = make(source, name, SIZE_MAX, spool.path());
    assert_eq!(
        fs::read_dir(spool.path()).expect("the spool").count(),
        0,
        "nothing is left in the spool"
    );
    made
}

fn bytes(mut made: Made) -> (ArtifactRef, Vec<u8>) {
    let mut bytes = Vec::new();
    made.bytes.read_to_end(&mut bytes).expect("its bytes");
    (made.reference, bytes)
}

#[test]
fn the_same_folder_is_the_same_artifact_and_unpacks_to_the_same_folder() {
    let (one, other) = (sample(false), sample(true));
    let touched = File::options()
        .append(true)
        .open(other.path().join("checkout"))
        .expect("opened");
    touched
        .set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1))
        .expect("touched");
    let (reference, tar) = bytes(made(one.path(), "").expect("made"));
    assert_eq!(made(other.path(), "").expect("made").reference, reference);
    assert_eq!(reference.size, Bytes(tar.len() as u64));
    mode(&other.path().join("checkout"), 0o700);
    assert_ne!(
        made(other.path(), "").expect("made").reference.digest,
        reference.digest
    );

    let mut archive = tar::Archive::new(&*tar);
    let entries = archive.entries().expect("entries").flatten();
    let paths: Vec<_> = entries
        .map(|entry| entry.path().expect("a path").into_owned())
        .collect();
    let sorted = ["b", "b/empty", "b/link", "b/nested", "checkout", "é"].map(PathBuf::from);
    assert_eq!(paths, sorted);

    let target = folder();
    let file = target.path().join("artifact");
    fs::write(&file, tar).expect("written");
    let work = target.path().join("work");
    unpack(&reference, &file, &work, None).expect("unpacked");
    let (again, _) = bytes(made(&work, "").expect("made"));
    assert_eq!(again.digest, reference.digest);
    assert_eq!(
        fs::read_to_string(work.join("b/link")).expect("through the link"),
        "checkout"
    );
    assert!(work.join("b/empty").is_dir());
}

#[test]
fn a_file_is_placed_under_its_name() {
    let source = sample(false);
    let (reference, bytes) =
        bytes(made(&source.path().join("checkout"), "./bin/checkout").expect("made"));
    assert_eq!(
        reference.form,
        ArtifactForm::File {
            name: "bin/checkout".into(),
            executable: true
        }
    );
    assert_eq!(bytes, b"checkout");
    let target = folder();
    unpack(
        &reference,
        &source.path().join("checkout"),
        &target.path().join("w"),
        None,
    )
    .expect("unpacked");
    let metadata = fs::metadata(target.path().join("w/bin/checkout")).expect("placed");
    assert_eq!(metadata.permissions().mode() & 0o777, 0o755);
}

#[test]
fn what_can_not_be_uploaded_is_named() {
    let root = sample(false);
    let path = root.path();
    let _socket = UnixListener::bind(path.join("socket")).expect("bound");
    let error = made(path, "").expect_err("a socket").to_string();
    assert!(error.contains("/socket is neither a file"), "{error}");
    fs::remove_file(path.join("socket")).expect("removed");
    symlink("/etc/passwd", path.join("out")).expect("linked");
    let error = made(path, "").expect_err("a symlink").to_string();
    assert!(
        error.contains("/out leads out of the folder, to /etc/passwd"),
        "{error}"
    );
    fs::remove_file(path.join("out")).expect("removed");
    assert!(matches!(
        make(path, "", Bytes(100), path),
        Err(Error::TooLarge { .. })
    ));
    assert!(matches!(
        make(&path.join("checkout"), "x", Bytes(3), path),
        Err(Error::TooLarge { .. })
    ));
    assert!(matches!(
        made(&path.join("gone"), "x"),
        Err(Error::Missing(_))
    ));
    assert!(matches!(
        made(&path.join("checkout"), "../x"),
        Err(Error::UnsafePath(_))
    ));
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
