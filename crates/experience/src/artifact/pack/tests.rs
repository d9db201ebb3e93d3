use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::*;

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).expect("written");
    set_mode(path, mode);
}

fn set_mode(path: &Path, mode: u32) {
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
        write(&path.join(name), name, 0o640);
    }
    set_mode(&path.join("checkout"), 0o755);
    symlink("../checkout", path.join("b/link")).expect("linked");
    root
}

fn made(source: &Path, name: &str) -> Result<Artifact, Error> {
    made_within(source, name, Limits::default())
}

fn made_within(source: &Path, name: &str, limits: Limits) -> Result<Artifact, Error> {
    let spool = folder();
    let made = make(source, name, limits, spool.path());
    let left = fs::read_dir(spool.path()).expect("the spool").count();
    assert_eq!(left, 0, "nothing is left in the spool");
    made
}

fn digest(source: &Path) -> Digest {
    made(source, "").expect("made").reference.digest
}

fn bytes(artifact: &Artifact) -> Vec<u8> {
    artifact.chunk(0).expect("its bytes")
}

#[test]
fn the_same_folder_is_the_same_artifact() {
    let (one, other) = (sample(false), sample(true));
    let touched = File::options()
        .append(true)
        .open(other.path().join("checkout"))
        .expect("opened");
    touched
        .set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1))
        .expect("touched");
    let before = digest(one.path());
    assert_eq!(digest(other.path()), before);
    set_mode(&other.path().join("checkout"), 0o700);
    assert_ne!(digest(other.path()), before, "its mode counts");
    write(&one.path().join("é"), "e", 0o640);
    assert_ne!(digest(one.path()), before, "its content counts");
}

#[test]
fn a_folder_is_packed_in_the_order_of_paths() {
    let root = sample(false);
    let artifact = made(root.path(), "").expect("made");
    let tar = bytes(&artifact);
    assert_eq!(artifact.reference.form, ArtifactForm::Folder);
    assert_eq!(artifact.reference.size, Bytes(tar.len() as u64));
    assert_eq!(
        artifact.reference.digest,
        Digest(Sha256::digest(&tar).into())
    );
    let mut archive = tar::Archive::new(&*tar);
    let entries = archive.entries().expect("entries");
    let paths: Vec<_> = entries
        .map(|entry| entry.expect("whole").path().expect("a path").into_owned())
        .collect();
    let sorted = ["b", "b/empty", "b/link", "b/nested", "checkout", "é"].map(PathBuf::from);
    assert_eq!(paths, sorted);
}

/// `compute` has a test with the same folder and digest: what is packed here is what is unpacked there. A digest that differs
/// has everybody upload everything again.
#[test]
fn the_format_is_the_one_that_nodes_unpack() {
    let root = folder();
    let path = root.path();
    for (name, mode) in [("bin", 0o755), ("data", 0o750), ("data/empty", 0o700)] {
        fs::create_dir(path.join(name)).expect("made");
        set_mode(&path.join(name), mode);
    }
    write(&path.join("bin/checkout"), "#!/bin/sh\nexec true\n", 0o755);
    symlink("checkout", path.join("bin/latest")).expect("linked");
    write(&path.join("data/é.txt"), "é\n", 0o640);
    write(&path.join("n".repeat(120)), "", 0o600);
    assert_eq!(
        digest(path).to_string(),
        "sha256:4d0ee80a4ba730cf34ef33e656e06774da2a619ee446cc9d84e5427deb28e312"
    );
}

#[test]
fn a_file_is_its_own_bytes_under_its_name() {
    let source = sample(false);
    let table = [
        ("checkout", "./bin/checkout", "bin/checkout", true),
        ("é", "é", "é", false),
    ];
    for (file, name, expected, executable) in table {
        let artifact = made(&source.path().join(file), name).expect("made");
        let name = expected.to_owned();
        assert_eq!(
            artifact.reference.form,
            ArtifactForm::File { name, executable }
        );
        assert_eq!(bytes(&artifact), file.as_bytes());
        let digest = Sha256::digest(file).into();
        assert_eq!(artifact.reference.digest, Digest(digest));
        assert_eq!(artifact.reference.size, Bytes(file.len() as u64));
    }
}

#[test]
fn what_can_not_be_packed_is_named() {
    let root = sample(false);
    let path = root.path();
    let socket = path.join("socket");
    let _listener = UnixListener::bind(&socket).expect("bound");
    for source in [path, &socket] {
        let error = made(source, "x").expect_err("a socket").to_string();
        assert!(error.contains("/socket is neither a file"), "{error}");
    }
    fs::remove_file(&socket).expect("removed");
    symlink("/etc/passwd", path.join("out")).expect("linked");
    let error = made(path, "").expect_err("a symlink").to_string();
    assert!(
        error.contains("/out leads out of the folder, to /etc/passwd"),
        "{error}"
    );
    assert!(matches!(
        made(&path.join("gone"), "x"),
        Err(Error::Missing(_))
    ));
    assert!(matches!(
        made(&path.join("checkout"), "../x"),
        Err(Error::UnsafeName(_))
    ));
}

#[test]
fn limits_are_kept() {
    let root = sample(false);
    let size = made(root.path(), "").expect("made").reference.size;
    let limits = |size, entries| Limits {
        size: Bytes(size),
        entries,
    };
    let fits = |name: &str, limits| match made_within(&root.path().join(name), "x", limits) {
        Ok(_) => true,
        Err(Error::TooLarge { .. } | Error::TooMany { .. }) => false,
        Err(other) => panic!("{other}"),
    };
    let table = [
        ("", limits(size.0, 6), true),
        ("", limits(size.0 - 1, 6), false),
        ("", limits(size.0, 5), false),
        ("checkout", limits(8, 0), true),
        ("checkout", limits(7, 0), false),
    ];
    for (name, limits, expected) in table {
        assert_eq!(fits(name, limits), expected, "{name} {limits:?}");
    }
}

#[test]
fn a_large_file_is_refused_before_it_fills_the_spool() {
    let root = folder();
    let file = File::create(root.path().join("sparse")).expect("made");
    file.set_len(32 << 20).expect("large");
    let limits = Limits {
        size: Bytes(1 << 20),
        ..Limits::default()
    };
    let mut packer = packer(root.path(), limits);
    let result = packer.append(Path::new("sparse"));
    assert!(matches!(result, Err(Error::TooLarge { .. })));
    assert_eq!(packer.builder.get_ref().size, 0);
}

#[test]
fn a_file_that_changes_while_it_is_packed_is_refused() {
    let root = folder();
    let full = root.path().join("file");
    for (content, unchanged) in [("four", true), ("fo", false), ("", false), ("fours", false)] {
        write(&full, "four", 0o644);
        let metadata = fs::metadata(&full).expect("there");
        write(&full, content, 0o644);
        let mut packer = packer(root.path(), Limits::default());
        match packer.append_file(Path::new("file"), &full, &metadata) {
            Ok(()) => assert!(unchanged, "`{content}`"),
            Err(Error::Changed(path)) => assert!(!unchanged && path == full, "`{content}`"),
            Err(other) => panic!("{other}"),
        }
    }
    // The kernel says that it is empty, and it never is.
    let growing = made(Path::new("/proc/self/stat"), "x");
    assert!(matches!(growing, Err(Error::Changed(_))));
}

fn packer(root: &Path, limits: Limits) -> Packer<'_> {
    let file = tempfile::tempfile().expect("a file");
    Packer {
        root,
        limits,
        builder: Builder::new(Hashing::of(file)),
    }
}

#[test]
fn what_the_ignore_files_name_is_left_out() {
    let root = folder();
    let path = root.path();
    for name in [".venv/bin", ".git", "src/cache", "node_modules/x"] {
        fs::create_dir_all(path.join(name)).expect("made");
    }
    for name in [
        "app.py",
        "notes.log",
        "keep.log",
        ".git/HEAD",
        ".hg",
        "src/main.py",
        "src/cache/x",
        "src/only.tmp",
        "other.tmp",
        "node_modules/x/y",
        "mainland.yaml",
    ] {
        write(&path.join(name), name, 0o644);
    }
    symlink("/usr/bin/python3", path.join(".venv/bin/python3")).expect("linked");
    let lists = |path: &Path| -> Vec<String> {
        let listed = list(path, Limits::default()).expect("listed");
        listed
            .into_iter()
            .map(|path| path.display().to_string())
            .collect()
    };
    assert!(lists(path).contains(&".venv/bin/python3".to_owned()));
    let rules = "# what is made here\n.venv/\nnode_modules\n*.log\n!keep.log\n";
    write(&path.join(".mainlandignore"), rules, 0o644);
    write(&path.join("src/.mainlandignore"), "/cache\n*.tmp\n", 0o644);
    let expected = ["app.py", "keep.log", "other.tmp", "src", "src/main.py"];
    assert_eq!(lists(path), expected);
    assert!(check(path, Limits::default()).is_empty());
    assert!(made(path, "").is_ok());
}

#[test]
fn what_upload_refuses_is_what_check_tells() {
    let root = folder();
    let path = root.path();
    for name in ["a", "b"] {
        symlink("/usr/bin/python3", path.join(name)).expect("linked");
    }
    let told = check(path, Limits::default());
    assert_eq!(told.len(), 2, "each of them: {told:?}");
    let refused = made(path, "").expect_err("a link leads out").to_string();
    assert_eq!(told[0].to_string(), refused);
    assert!(refused.contains("a line in .mainlandignore"), "{refused}");
    write(&path.join(".mainlandignore"), "a\nb\n", 0o644);
    write(&path.join("large"), "12345", 0o644);
    let limits = Limits {
        size: Bytes(4),
        ..Limits::default()
    };
    let told = check(path, limits);
    assert!(matches!(told[..], [Error::TooLarge { .. }]), "{told:?}");
    let gone = check(&path.join("gone"), limits);
    assert!(matches!(gone[..], [Error::Missing(_)]), "{gone:?}");
}
