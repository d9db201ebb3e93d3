//! Working directories: artifacts, volumes, secret files.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use compute::runtime::{
    Artifact, Error, Identity, InstanceSpec, Runtime as _, SecretFile, VolumeMount,
};
use model::compute::ExitHow;
use model::ids::ResourceName;

use crate::packed;
use crate::world::{World, is_root};

/// An artifact of a folder with these files, all mode 644.
fn artifact(world: &World, files: &[(&str, &str)]) -> Artifact {
    let entries: Vec<_> = files
        .iter()
        .map(|(name, text)| packed::file(name, 0o644, text))
        .collect();
    let (reference, tar) = packed::pack(&entries);
    let path = world.path(&format!("artifact-{}", reference.digest.hex()));
    fs::write(&path, tar).expect("written");
    Artifact { path, reference }
}

fn volume(name: &str, directory: &Path) -> VolumeMount {
    VolumeMount {
        name: ResourceName::new(name).expect("a name"),
        directory: directory.to_owned(),
    }
}

fn prepare(world: &World, spec: &InstanceSpec) -> Result<(), Error> {
    world.run(world.runtime().prepare(spec))
}

#[test]
fn what_can_not_be_executed_in_an_artifact_is_explained() {
    let world = World::new();
    let files = [
        ("readme", "x"),
        ("lib/a", "x"),
        ("script", "#!/no/such/interpreter\n"),
    ];
    let artifact = artifact(&world, &files);
    let table = [
        (
            "./checkout",
            "./checkout: no such file; the artifact holds: lib, readme, script",
        ),
        (
            "./readme",
            "./readme: not executable (mode 644): run `chmod +x` on it",
        ),
        (
            "./script",
            "./script: its interpreter `/no/such/interpreter` is not on this machine",
        ),
    ];
    for (program, expected) in table {
        let mut spec = world.spec("a", &[program]);
        spec.artifact = Some(artifact.clone());
        prepare(&world, &spec).expect("prepared");
        if program == "./script" {
            let script = spec.directory.join("work/script");
            fs::set_permissions(script, fs::Permissions::from_mode(0o755)).expect("its mode");
        }
        let error = world.try_start(&spec).expect_err("it can't start");
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn a_corrupt_artifact_is_discarded() {
    let world = World::new();
    let artifact = artifact(&world, &[("x", "x")]);
    let mut bytes = fs::read(&artifact.path).expect("read");
    bytes[600] ^= 1;
    fs::write(&artifact.path, bytes).expect("written");
    let mut spec = world.spec("a", &["true"]);
    spec.artifact = Some(artifact.clone());
    assert!(
        matches!(prepare(&world, &spec), Err(Error::CorruptArtifact { digest }) if digest == artifact.reference.digest)
    );
    assert!(!artifact.path.exists());
}

#[test]
fn preparing_again_keeps_what_was_written_and_a_new_artifact_replaces_it() {
    let world = World::new();
    let mut spec = world.spec("a", &["true"]);
    spec.artifact = Some(artifact(&world, &[("version", "1")]));
    prepare(&world, &spec).expect("prepared");
    let work = spec.directory.join("work");
    fs::write(work.join("scratch"), "kept").expect("written");
    prepare(&world, &spec).expect("prepared again");
    assert_eq!(
        fs::read_to_string(work.join("scratch")).expect("kept"),
        "kept"
    );
    spec.artifact = Some(artifact(&world, &[("version", "2")]));
    prepare(&world, &spec).expect("prepared");
    assert_eq!(
        fs::read_to_string(work.join("version")).expect("there"),
        "2"
    );
    assert!(!work.join("scratch").exists());
}

#[test]
fn a_volume_outlives_the_instance_and_belongs_to_its_user() {
    let mut world = World::new();
    let directory = world.path("the-volume");
    let mut spec = world.shell("a", "echo more >> data/file; cat data/file");
    spec.volumes = vec![volume("data", &directory)];
    assert!(matches!(
        prepare(&world, &spec),
        Err(Error::VolumeMissing { .. })
    ));
    fs::create_dir(&directory).expect("made");
    fs::write(directory.join("file"), "first\n").expect("written");
    if is_root() {
        spec.identity = Some(Identity {
            uid: 61_235,
            gid: 61_235,
        });
    }
    world.start(&spec);
    assert_eq!(
        world.exit().how,
        ExitHow::Code { code: 0 },
        "{}",
        world.output("a")
    );
    world
        .run(world.runtime().remove(&spec.instance, &spec.directory))
        .expect("removed");
    assert_eq!(
        fs::read_to_string(directory.join("file")).expect("kept"),
        "first\nmore\n"
    );
    if is_root() {
        assert_eq!(
            fs::metadata(directory.join("file"))
                .expect("its owner")
                .uid(),
            61_235
        );
    }
}

#[test]
fn a_volume_never_hides_files_of_the_artifact() {
    let world = World::new();
    let directory = world.path("the-volume");
    fs::create_dir(&directory).expect("made");
    let mut spec = world.spec("a", &["true"]);
    spec.volumes = vec![volume("data", &directory)];
    spec.artifact = Some(artifact(&world, &[("data/file", "x")]));
    assert!(matches!(
        prepare(&world, &spec),
        Err(Error::VolumeHidden { .. })
    ));
}

#[test]
fn a_secret_file_is_for_the_workload_alone_and_goes_with_it() {
    let mut world = World::new();
    let path = world.path("secrets").join("a").join("payment-key");
    let mut spec = world.shell("a", "echo \"got $(cat $KEY_FILE)\"");
    spec.environment
        .0
        .insert("KEY_FILE".into(), path.to_string_lossy().into_owned());
    spec.secret_files = vec![SecretFile {
        path: path.clone(),
        contents: b"hunter2".to_vec(),
    }];
    if is_root() {
        spec.identity = Some(Identity {
            uid: 61_236,
            gid: 61_236,
        });
    }
    world.start(&spec);
    assert_eq!(world.exit().how, ExitHow::Code { code: 0 });
    assert_eq!(world.line("a", "o got "), "hunter2");
    assert_eq!(
        fs::metadata(&path).expect("there").permissions().mode() & 0o777,
        0o400
    );
    world
        .run(world.runtime().remove(&spec.instance, &spec.directory))
        .expect("removed");
    assert!(!path.exists());
}

/// Other copies of a service run as the same user beside: what they could enter while root unpacks into it, they could bend.
#[test]
fn nobody_else_can_enter_what_is_being_unpacked() {
    if !is_root() {
        println!("not root: nothing is given to another user");
        return;
    }
    let world = World::new();
    let files: Vec<(String, &str)> = (0..400)
        .map(|number| (format!("sub-{number}/file"), "x"))
        .collect();
    let files: Vec<(&str, &str)> = files
        .iter()
        .map(|(path, text)| (path.as_str(), *text))
        .collect();
    let mut spec = world.spec("a", &["true"]);
    spec.artifact = Some(artifact(&world, &files));
    spec.identity = Some(Identity {
        uid: 61_237,
        gid: 61_237,
    });
    let fresh = spec.directory.join("work.new");
    let over = std::sync::atomic::AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let looks = scope.spawn(|| {
            let mut seen = Vec::new();
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                if let Ok(found) = fs::metadata(&fresh) {
                    seen.push((found.uid(), found.permissions().mode() & 0o777));
                }
            }
            seen
        });
        prepare(&world, &spec).expect("prepared");
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        looks.join().expect("it looked")
    });
    assert!(!seen.is_empty(), "it was never looked at");
    let open = seen.iter().find(|(_, mode)| mode & 0o077 != 0);
    assert_eq!(open, None);
    assert!(seen.iter().any(|(uid, _)| *uid == 0));
}
