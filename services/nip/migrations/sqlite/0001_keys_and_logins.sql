-- Which key file the sealed keys belong to: a value derived from it, written once by whichever replica starts first.
CREATE TABLE keystore (
    id          INTEGER PRIMARY KEY CHECK (id = 1),
    check_value BLOB NOT NULL
) STRICT;

-- Private keys, sealed (AES-256-GCM); key_id, pubkey and owner are bound into the seal. Ids rise with time.
CREATE TABLE nostr_key (
    owner          TEXT NOT NULL,
    key_id         TEXT NOT NULL,
    pubkey         TEXT NOT NULL CHECK (length(pubkey) = 64),
    sealed         BLOB NOT NULL,
    display_name   TEXT NOT NULL,
    create_time_us INTEGER NOT NULL,
    PRIMARY KEY (owner, key_id),
    UNIQUE (owner, pubkey)
) STRICT, WITHOUT ROWID;

-- Login events that were used: an event id is good once, on any replica and after a restart. A row is forgotten only when the
-- window of time has long refused its event.
CREATE TABLE used_login (
    event_id            TEXT PRIMARY KEY,
    forget_time_seconds INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX used_login_by_time ON used_login (forget_time_seconds);
