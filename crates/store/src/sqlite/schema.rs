//! The tables.

/// "Main", so that `file` and we can tell what the file is.
pub(super) const APPLICATION_ID: i32 = 0x4d61_696e;

/// Rows of one revision at most: the place of a row in its revision is the low part of its id.
pub(super) const PLACES: i64 = 1 << 16;

pub(super) const MIGRATIONS: &[&str] = &["
    -- Every change that is not compacted. Appended at the end; the newest row of a key is its record.
    CREATE TABLE history (
        id       INTEGER PRIMARY KEY,  -- revision * 65536 + place in the revision
        key      TEXT NOT NULL,
        value    BLOB,                 -- NULL: deleted
        created  INTEGER NOT NULL,     -- revision
        version  INTEGER NOT NULL,
        lease    INTEGER
    ) STRICT;
    -- The index ends in the id: finds the newest row of a key, or the newest before a revision.
    CREATE INDEX history_by_key ON history (key);
    CREATE INDEX history_by_lease ON history (lease) WHERE lease IS NOT NULL;

    -- AUTOINCREMENT: an ended lease's number never comes back.
    CREATE TABLE lease (
        id               INTEGER PRIMARY KEY AUTOINCREMENT,
        time_to_live_ms  INTEGER NOT NULL
    ) STRICT;

    -- One row. `newest` is right as of the last compaction; later revisions are in the history.
    CREATE TABLE mark (
        compacted  INTEGER NOT NULL,
        newest     INTEGER NOT NULL
    ) STRICT;
    INSERT INTO mark VALUES (0, 0);
"];
