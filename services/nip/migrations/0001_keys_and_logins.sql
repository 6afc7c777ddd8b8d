-- Which key file the sealed keys belong to: a value derived from it, written once by whichever replica starts first.
CREATE TABLE keystore (
    id          INTEGER PRIMARY KEY CHECK (id = 1),
    check_value BLOB NOT NULL
) STRICT;

-- Private keys, sealed (AES-256-GCM); key_id, pubkey and owner are bound into the seal. `sequence` is the order of creation.
CREATE TABLE nostr_key (
    sequence       INTEGER PRIMARY KEY,
    key_id         TEXT NOT NULL UNIQUE,
    owner          TEXT NOT NULL,
    pubkey         TEXT NOT NULL CHECK (length(pubkey) = 64),
    sealed         BLOB NOT NULL,
    display_name   TEXT NOT NULL,
    create_time_us INTEGER NOT NULL,
    UNIQUE (owner, pubkey)
) STRICT;

-- The pages of ListKeys.
CREATE INDEX nostr_key_by_owner ON nostr_key (owner, sequence);

-- Login events that were used: an event id is good once, on any replica and after a restart. A row is forgotten only when the
-- window of time has long refused its event.
CREATE TABLE used_login (
    event_id              TEXT PRIMARY KEY,
    forget_time_seconds   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX used_login_by_time ON used_login (forget_time_seconds);
