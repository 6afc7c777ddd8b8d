-- What only one replica may do at a time; see services.events.leases.
CREATE TABLE storage_lease (
    name TEXT NOT NULL PRIMARY KEY,
    owner TEXT NOT NULL,
    fence INTEGER NOT NULL,          -- rises with every owner
    expire_time_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- How far the outbox is published: one row.
CREATE TABLE storage_outbox (
    outbox_id TEXT NOT NULL,         -- in the ids of its events: those of a database that is made anew are others
    published_sequence INTEGER NOT NULL,
    tail_sequence INTEGER NOT NULL,  -- the event that was published last, in a replay too, and its place in the stream
    tail_position INTEGER NOT NULL,
    replay_sequence INTEGER,         -- published again are events after this one, up to that
    replay_to_sequence INTEGER
) STRICT;
INSERT INTO storage_outbox VALUES (lower(hex(randomblob(4))), 0, 0, 0, NULL, NULL);

-- What was received, by each consumer: it is not received again.
CREATE TABLE storage_inbox (
    consumer TEXT NOT NULL,
    event_id TEXT NOT NULL,
    position INTEGER NOT NULL,       -- in the stream
    create_time_ms INTEGER NOT NULL,
    PRIMARY KEY (consumer, event_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX storage_inbox_by_time ON storage_inbox (create_time_ms);

-- Who consumes, and how much of it.
CREATE TABLE storage_consumer (
    name TEXT NOT NULL PRIMARY KEY,
    types TEXT NOT NULL,             -- with blanks between them
    handled INTEGER NOT NULL,
    handled_time_ms INTEGER NOT NULL -- 0: never
) STRICT, WITHOUT ROWID;

-- Received, and not handled: tried again at next_time_ms; a dead letter when that is NULL.
CREATE TABLE storage_parked_event (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    consumer TEXT NOT NULL,          -- "outbox": the bus would not take it
    event_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    source TEXT NOT NULL,
    subject TEXT NOT NULL,
    message TEXT NOT NULL,           -- full name of the payload's
    payload BLOB NOT NULL,
    traceparent TEXT NOT NULL,
    extensions TEXT NOT NULL,        -- JSON: further attributes
    event_time_ms INTEGER NOT NULL,
    position INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    next_time_ms INTEGER,
    reason TEXT NOT NULL,
    error TEXT NOT NULL,
    create_time_ms INTEGER NOT NULL,
    update_time_ms INTEGER NOT NULL,
    UNIQUE (consumer, event_id)
) STRICT;
CREATE INDEX storage_parked_event_due ON storage_parked_event (consumer, next_time_ms);
