//! Logs and events on a real disk.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use model::control::Reason;
use model::signals::{Event, Level, Stream};
use signals::events::{EventLog, Options};
use signals::logs::{Batch, LINE_MAX_BYTES, Limits, Reader, Writer};
use tempfile::TempDir;

const SMALL: Limits = Limits {
    files: 3,
    file_bytes: 200,
};

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

/// Writes `line N` for each number at second N, each flushed.
fn write(writer: &mut Writer, numbers: impl Iterator<Item = i64>) {
    for number in numbers {
        writer
            .append(
                at(number),
                Stream::Stdout,
                format!("line {number}").as_bytes(),
            )
            .expect("appended");
        writer.flush().expect("flushed");
    }
}

fn all(reader: &mut Reader) -> Vec<String> {
    let mut texts = Vec::new();
    loop {
        let batch = reader.read_batch().expect("a batch");
        if batch.is_empty() {
            return texts;
        }
        texts.extend(batch.lines.into_iter().map(|line| line.text));
    }
}

fn lines(numbers: std::ops::Range<i64>) -> Vec<String> {
    numbers.map(|number| format!("line {number}")).collect()
}

#[test]
fn a_line_keeps_its_time_and_stream() {
    let folder = folder();
    let mut writer = Writer::open(folder.path(), SMALL).expect("opened");
    let time = Timestamp::from_microsecond(1_700_000_000_123_456).expect("a time");
    for (stream, text) in [
        (Stream::Stdout, "out  with spaces "),
        (Stream::Stderr, ""),
        (Stream::Shim, "ä"),
    ] {
        writer
            .append(time, stream, text.as_bytes())
            .expect("appended");
    }
    writer
        .append(time, Stream::Stdout, b"forged\n1 e line\xff")
        .expect("appended");
    writer.flush().expect("flushed");
    let batch = Reader::from_start(folder.path())
        .read_batch()
        .expect("a batch");
    let found: Vec<_> = batch
        .lines
        .iter()
        .map(|line| (line.at, line.stream, &*line.text))
        .collect();
    let expected = [
        (time, Stream::Stdout, "out  with spaces "),
        (time, Stream::Stderr, ""),
        (time, Stream::Shim, "ä"),
        (time, Stream::Stdout, "forged 1 e line\u{fffd}"),
    ];
    assert_eq!(found, expected);
}

#[test]
fn pieces_of_a_line_and_its_bytes_are_told_apart() {
    let folder = folder();
    let mut writer = Writer::open(folder.path(), SMALL).expect("opened");
    let bytes = b"\x00\xff\x1b]0;x\x07";
    writer
        .append_piece(at(1), Stream::Stdout, b"a")
        .expect("added");
    writer.append(at(2), Stream::Stdout, b"b").expect("added");
    writer.append(at(3), Stream::Stderr, bytes).expect("added");
    writer.flush().expect("flushed");
    let batch = Reader::from_start(folder.path())
        .read_batch()
        .expect("read");
    let found: Vec<_> = batch
        .lines
        .iter()
        .map(|line| (line.text.as_str(), line.partial, line.base64.as_deref()))
        .collect();
    let expected = [
        ("a", true, None),
        ("b", false, None),
        ("\0\u{fffd}\x1b]0;x\x07", false, Some("AP8bXTA7eAc=")),
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_long_line_is_cut() {
    let folder = folder();
    let mut writer = Writer::open(folder.path(), SMALL).expect("opened");
    writer
        .append(at(1), Stream::Stdout, &vec![b'x'; LINE_MAX_BYTES + 5])
        .expect("appended");
    writer.flush().expect("flushed");
    assert_eq!(
        all(&mut Reader::from_start(folder.path()))[0].len(),
        LINE_MAX_BYTES
    );
}

#[test]
fn the_bound_holds_and_the_oldest_go_first() {
    let folder = folder();
    let mut writer = Writer::open(folder.path(), SMALL).expect("opened");
    write(&mut writer, 100..400);
    let sizes: Vec<_> = fs::read_dir(folder.path())
        .expect("the folder")
        .map(|entry| entry.expect("an entry").metadata().expect("its size").len())
        .collect();
    assert!(
        sizes.len() == 3 && sizes.iter().all(|size| *size <= SMALL.file_bytes),
        "{sizes:?}"
    );
    let kept = all(&mut Reader::from_start(folder.path()));
    assert!(
        kept.len() > 10 && lines(100..400).ends_with(&kept),
        "{kept:?}"
    );
}

#[test]
fn the_tail_is_found_across_files() {
    let folder = folder();
    let mut writer = Writer::open(folder.path(), SMALL).expect("opened");
    assert!(all(&mut Reader::tail(folder.path(), 3).expect("a reader")).is_empty());
    write(&mut writer, 100..400);
    let kept = all(&mut Reader::from_start(folder.path())).len() as i64;
    for count in [0, 1, 2, 10, kept - 1, kept, kept + 1] {
        let mut reader = Reader::tail(folder.path(), count as usize).expect("a reader");
        assert_eq!(
            all(&mut reader),
            lines(400 - count.min(kept)..400),
            "{count}"
        );
        write(&mut writer, 0..0);
    }
    assert!(all(&mut Reader::tail(Path::new("/nonexistent"), 3).expect("a reader")).is_empty());
}

#[test]
fn since_a_time_is_the_first_line_at_or_after_it() {
    let folder = folder();
    let mut writer = Writer::open(
        folder.path(),
        Limits {
            files: 3,
            file_bytes: 2000,
        },
    )
    .expect("opened");
    write(&mut writer, 100..150);
    for (since, expected) in [
        (0, 100..150),
        (100, 100..150),
        (120, 120..150),
        (149, 149..150),
        (150, 150..150),
    ] {
        assert_eq!(
            all(&mut Reader::since(folder.path(), at(since))),
            lines(expected),
            "{since}"
        );
    }
    // A clock that was set back hides nothing that came after.
    write(&mut writer, 10..12);
    let found = all(&mut Reader::since(folder.path(), at(149)));
    assert_eq!(found, ["line 149", "line 10", "line 11"]);
}

#[test]
fn a_follower_loses_and_repeats_nothing_across_rotation_and_restarts() {
    let folder = folder();
    let generous = Limits {
        files: 1000,
        file_bytes: 100,
    };
    let mut found = Vec::new();
    let mut reader = Reader::from_start(folder.path());
    for start in (0..300).step_by(7) {
        // The writer and the reader are new each time, as after a restart.
        let mut writer = Writer::open(folder.path(), generous).expect("opened");
        write(&mut writer, start..start + 7);
        reader = Reader::from_position(folder.path(), reader.position());
        found.extend(all(&mut reader));
    }
    assert_eq!(found, lines(0..301));
}

#[test]
fn a_follower_beside_the_writer_sees_each_line_once() {
    let folder = folder();
    let path = folder.path().to_owned();
    let thread = std::thread::spawn(move || {
        let mut writer = Writer::open(
            &path,
            Limits {
                files: 1000,
                file_bytes: 300,
            },
        )
        .expect("opened");
        write(&mut writer, 0..2000);
    });
    let mut reader = Reader::from_start(folder.path());
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut found = Vec::new();
    while found.len() < 2000 && Instant::now() < deadline {
        let batch = reader.next_batch(deadline).expect("a batch");
        assert!(!batch.missed);
        found.extend(batch.lines.into_iter().map(|line| line.text));
    }
    thread.join().expect("the writer");
    assert_eq!(found, lines(0..2000));
    assert_eq!(
        reader.next_batch(Instant::now()).expect("a batch"),
        Batch::default()
    );
}

#[test]
fn who_falls_behind_is_told() {
    let folder = folder();
    let mut writer = Writer::open(folder.path(), SMALL).expect("opened");
    write(&mut writer, 100..103);
    let mut reader = Reader::from_start(folder.path());
    assert_eq!(all(&mut reader), lines(100..103));
    write(&mut writer, 103..400);
    let batch = reader.read_batch().expect("a batch");
    assert!(batch.missed);
    assert_ne!(batch.lines[0].text, "line 103");
    assert!(!reader.read_batch().expect("a batch").missed);
}

#[test]
fn a_torn_tail_takes_no_other_line_with_it() {
    let folder = folder();
    write(
        &mut Writer::open(folder.path(), SMALL).expect("opened"),
        0..2,
    );
    let file = folder.path().join("00000001.log");
    let mut reader = Reader::from_start(folder.path());
    assert_eq!(all(&mut reader), lines(0..2));
    File::options()
        .append(true)
        .open(file)
        .expect("opened")
        .write_all(b"17000000 o ha")
        .expect("torn");
    assert!(all(&mut reader).is_empty(), "half a record is not read");
    write(
        &mut Writer::open(folder.path(), SMALL).expect("opened again"),
        2..4,
    );
    assert_eq!(all(&mut reader), ["ha", "line 2", "line 3"]);
    assert_eq!(
        all(&mut Reader::tail(folder.path(), 2).expect("a reader")),
        lines(2..4)
    );
}

/// A file system of 64 KiB, where that may be had.
struct Tiny(TempDir);

impl Tiny {
    fn mount() -> Option<Self> {
        let folder = folder();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
            .arg(folder.path())
            .stderr(std::process::Stdio::null())
            .status();
        match mounted {
            Ok(status) if status.success() => Some(Self(folder)),
            _ => {
                eprintln!("no file system may be mounted here");
                None
            }
        }
    }

    fn fill(&self) {
        let mut file = File::create(self.0.path().join("filler")).expect("created");
        while file.write_all(&[0; 512]).is_ok() {}
    }

    fn empty(&self) {
        fs::remove_file(self.0.path().join("filler")).expect("removed");
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_drops_lines_counts_them_and_says_so_afterwards() {
    let Some(disk) = Tiny::mount() else { return };
    let folder = disk.0.path().join("logs");
    let mut writer = Writer::open(
        &folder,
        Limits {
            files: 2,
            file_bytes: 16 << 10,
        },
    )
    .expect("opened");
    write(&mut writer, 0..3);
    disk.fill();
    let mut refused = 0;
    for number in 3..2000 {
        writer
            .append(at(number), Stream::Stdout, &[b'x'; 100])
            .expect("it is only gathered");
        refused += u64::from(writer.flush().is_err());
    }
    assert!(
        refused > 0 && writer.lost() == refused,
        "{refused} {}",
        writer.lost()
    );
    disk.empty();
    write(&mut writer, 2000..2002);
    let found = all(&mut Reader::tail(&folder, 3).expect("a reader"));
    assert_eq!(
        found,
        [
            format!("{refused} lines lost: the disk refused them"),
            "line 2000".into(),
            "line 2001".into()
        ]
    );
}

fn event(subject: &str) -> Event {
    let reason = Reason::new("tested", "because");
    Event {
        sequence: 0,
        at: at(1),
        level: Level::Info,
        project: None,
        node: None,
        subject: subject.to_owned(),
        reason,
    }
}

fn subjects(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| &*event.subject).collect()
}

fn options(memory_events: usize, files: u32) -> Options {
    Options {
        disk: Limits {
            files,
            file_bytes: 1000,
        },
        memory_events,
    }
}

#[test]
fn events_are_numbered_and_read_from_a_number_on() {
    let folder = folder();
    let log = EventLog::open(folder.path(), options(100, 100)).expect("opened");
    assert!(log.since(0).is_empty() && log.last() == 0);
    for (index, subject) in ["a", "b", "c"].iter().enumerate() {
        let appended = log.append(event(subject));
        assert!(appended.sequence == index as u64 + 1 && appended.disk_failed.is_none());
    }
    assert_eq!(subjects(&log.since(0)), ["a", "b", "c"]);
    assert_eq!(subjects(&log.since(2)), ["c"]);
    assert!(log.since(3).is_empty() && log.since(99).is_empty());
    drop(log);
    let log = EventLog::open(folder.path(), options(2, 100)).expect("opened again");
    assert_eq!(subjects(&log.since(0)), ["b", "c"], "the memory is bounded");
    assert_eq!(log.append(event("d")).sequence, 4);
    assert_eq!(subjects(&log.since(0)), ["c", "d"]);
}

#[test]
fn events_on_disk_are_bounded_and_torn_ones_passed_over() {
    let folder = folder();
    let log = EventLog::open(folder.path(), options(10_000, 2)).expect("opened");
    for number in 0..1000 {
        log.append(event(&format!("e{number}")));
    }
    drop(log);
    let files: Vec<_> = fs::read_dir(folder.path())
        .expect("the folder")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    assert_eq!(files.len(), 2);
    let newest = files.iter().max().expect("a file");
    File::options()
        .append(true)
        .open(newest)
        .expect("opened")
        .write_all(b"{\"seq")
        .expect("torn");
    let log = EventLog::open(folder.path(), options(10_000, 2)).expect("opened again");
    assert_eq!(log.last(), 1000);
    log.append(event("after"));
    drop(log);
    let log = EventLog::open(folder.path(), options(10_000, 2)).expect("opened again");
    assert_eq!(
        log.since(999)
            .iter()
            .map(|event| event.sequence)
            .collect::<Vec<_>>(),
        [1000, 1001]
    );
}

#[test]
fn a_full_disk_loses_no_event_of_the_memory_and_is_told_once() {
    let Some(disk) = Tiny::mount() else { return };
    let folder = disk.0.path().join("events");
    let roomy = Options {
        disk: Limits {
            files: 2,
            file_bytes: 1 << 20,
        },
        memory_events: 10_000,
    };
    let log = EventLog::open(&folder, roomy).expect("opened");
    disk.fill();
    let told = (0..100)
        .filter(|number| {
            log.append(event(&format!("e{number}")))
                .disk_failed
                .is_some()
        })
        .count();
    assert_eq!(told, 1);
    assert_eq!(log.since(0).len(), 100);
    disk.empty();
    assert!(log.append(event("last")).disk_failed.is_none());
    drop(log);
    let log = EventLog::open(&folder, roomy).expect("opened again");
    let sequences: Vec<_> = log.since(0).iter().map(|event| event.sequence).collect();
    assert_eq!(sequences, (1..=101).collect::<Vec<_>>());
}
