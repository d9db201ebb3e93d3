//! The way of what is loaded into psql: SQL as it is, an archive through pg_restore.
//!
//! ```text
//!  stdin ──► (pg_restore ──►) scan ──► psql
//! ```

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, ExitCode, ExitStatus, Stdio};

use super::RELEASE;
use super::format::{self, Format, HEAD_BYTES};
use super::scan::Scan;
use super::statement::Here;

const BUFFER_BYTES: usize = 64 << 10;
/// Of one line of SQL; rows of a COPY have one each.
const LINE_BYTES_MAX: u64 = 1 << 30;
/// What it has that a statement may name: its kind, and its name.
const HERE: &str = "select 'role', rolname from pg_catalog.pg_roles where not rolsuper
    union select 'made', e.extname from pg_catalog.pg_extension e join pg_catalog.pg_roles r on r.oid = e.extowner where r.rolsuper
    union select 'trusted', name from pg_catalog.pg_available_extension_versions where trusted";

/// The programs of PostgreSQL, with the environment to come to the database.
pub struct Programs {
    pub psql: Command,
    /// To ask what is there.
    pub asking: Command,
    pub restore: Command,
}

/// Loads what stdin has. The exit code is psql's, or a failure.
///
/// # Errors
///
/// In words: it is not to be loaded, and nothing was.
pub fn run(programs: Programs) -> Result<ExitCode, String> {
    let mut head = Vec::with_capacity(HEAD_BYTES);
    let mut begin = io::stdin().take(HEAD_BYTES as u64);
    begin.read_to_end(&mut head).map_err(unread)?;
    let whole = io::Cursor::new(head.clone()).chain(io::stdin());
    match format::of(&head) {
        Format::Sql => load(programs.psql, programs.asking, whole, || Ok(())),
        Format::Archive => {
            let (mut restore, sql) = restored(programs.restore, whole)?;
            load(programs.psql, programs.asking, sql, move || {
                match restore.wait() {
                    Ok(status) if status.success() => Ok(()),
                    _ => Err("pg_restore could not read it to its end".to_owned()),
                }
            })
        }
        Format::Packed(what, command) => Err(format!(
            "this is {what}, not SQL; give what is in it: {command} | mainland db load DATABASE -"
        )),
    }
}

fn unread(error: io::Error) -> String {
    format!("what is to be loaded can't be read: {error}")
}

/// What pg_restore makes of an archive.
fn restored(
    mut restore: Command,
    mut archive: impl Read + Send + 'static,
) -> Result<(Child, impl Read), String> {
    let restore = restore.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut restore = restore.map_err(|error| format!("pg_restore: {error}"))?;
    let (into, from) = (restore.stdin.take(), restore.stdout.take());
    let (mut into, from) = into.zip(from).ok_or("pg_restore has no pipes")?;
    // It ends by itself with what it reads, or with who reads what it writes.
    std::thread::spawn(move || io::copy(&mut archive, &mut into));
    Ok((restore, from))
}

fn load(
    mut psql: Command,
    asking: Command,
    sql: impl Read,
    whole: impl FnOnce() -> Result<(), String>,
) -> Result<ExitCode, String> {
    let mut scan = Scan::new(here(asking)?);
    let mut child = psql
        .stdin(Stdio::piped())
        .spawn()
        .map_err(|error| format!("psql: {error}"))?;
    let fed = match child.stdin.take() {
        Some(into) => feed(&mut scan, sql, into, whole),
        None => Err("psql has no stdin".to_owned()),
    };
    if let Err(why) = fed {
        // Its transaction goes with it.
        let _ = child.kill();
        let _ = child.wait();
        return Err(why);
    }
    let status = child.wait().map_err(|error| format!("psql: {error}"))?;
    if status.success() {
        scan.left_out
            .lines()
            .iter()
            .for_each(|line| eprintln!("{line}"));
    }
    Ok(code(status))
}

fn code(status: ExitStatus) -> ExitCode {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    code.map_or(ExitCode::FAILURE, ExitCode::from)
}

fn here(mut asking: Command) -> Result<Here, String> {
    asking.args([
        "--no-psqlrc",
        "--tuples-only",
        "--no-align",
        "--field-separator= ",
        "--command",
        HERE,
    ]);
    let output = asking.stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| format!("psql: {error}"))?;
    if !output.status.success() {
        return Err("the database does not say which roles it has".to_owned());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let named = |kind: &str| {
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        let of_kind = lines.filter(|(known, _)| *known == kind);
        of_kind.map(|(_, name)| name.to_owned()).collect()
    };
    Ok(Here {
        roles: named("role"),
        extensions: named("made"),
        trusted: named("trusted"),
    })
}

/// Everything, and only then what lets psql commit it. A psql that has ended says why itself.
fn feed(
    scan: &mut Scan,
    sql: impl Read,
    mut into: ChildStdin,
    whole: impl FnOnce() -> Result<(), String>,
) -> Result<(), String> {
    let mut sql = BufReader::with_capacity(BUFFER_BYTES, sql);
    let (mut line, mut out) = (Vec::new(), Vec::with_capacity(2 * BUFFER_BYTES));
    loop {
        line.clear();
        let read = (&mut sql).take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
        if read.map_err(unread)? == 0 {
            break;
        }
        scan.line(&line, &mut out)
            .map_err(|error| error.to_string())?;
        if out.len() >= BUFFER_BYTES {
            if into.write_all(&out).is_err() {
                return Ok(());
            }
            out.clear();
        }
    }
    whole()?;
    if scan.is_cut_off() {
        return Err("it breaks off amid a statement or its rows".to_owned());
    }
    scan.end(&mut out).map_err(|error| error.to_string())?;
    out.push(b'\n');
    out.extend_from_slice(RELEASE.as_bytes());
    let _ = into.write_all(&out);
    Ok(())
}
