//! The tables.

/// "Topi", so that `file` and we can tell what the file is.
pub(super) const APPLICATION_ID: i32 = 0x546f_7069;

pub(super) const MIGRATIONS: &[&str] = &["
    CREATE TABLE message (
        position      INTEGER PRIMARY KEY,
        end           INTEGER NOT NULL,  -- bytes published up to here in the life of the topic: the size of a stretch is a difference
        at            INTEGER NOT NULL,  -- milliseconds since 1970
        key           TEXT,
        dedup         TEXT,              -- `Event::dedup`; without a line's end before it, from a version that left out the publisher
        content_type  TEXT,
        attributes    TEXT,              -- a JSON object; NULL: none
        data          BLOB NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX message_by_dedup ON message (dedup) WHERE dedup IS NOT NULL;

    -- One row. Up to here only what lies in a dead letter is left.
    CREATE TABLE removed (
        position  INTEGER NOT NULL,
        end       INTEGER NOT NULL
    ) STRICT;
    INSERT INTO removed VALUES (0, 0);

    CREATE TABLE consumer (
        name  TEXT PRIMARY KEY,
        pull  INTEGER NOT NULL,
        seen  INTEGER NOT NULL,          -- milliseconds since 1970
        read  INTEGER NOT NULL,          -- done with everything up to here
        open  BLOB NOT NULL              -- but these positions
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE failure (
        consumer  TEXT NOT NULL,
        position  INTEGER NOT NULL,
        attempts  INTEGER NOT NULL,
        retry_at  INTEGER NOT NULL,      -- milliseconds since 1970
        error     TEXT NOT NULL,
        PRIMARY KEY (consumer, position)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE dead (
        consumer  TEXT NOT NULL,
        position  INTEGER NOT NULL,
        attempts  INTEGER NOT NULL,
        error     TEXT NOT NULL,
        at        INTEGER NOT NULL,      -- milliseconds since 1970
        PRIMARY KEY (consumer, position)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX dead_by_position ON dead (position);
", "
    ALTER TABLE consumer ADD COLUMN begun BLOB NOT NULL DEFAULT x'';  -- of the open positions, those that somebody has
", "
    ALTER TABLE consumer ADD COLUMN owner TEXT;        -- the service that pulls under this name
"];
