-- Keys that are locked with a password, disabled or deleted. SQLite drops no constraint in place: the table is made anew, and all rows are kept.
--
-- condition: what stands in the row; an unlocked key is LOCKED with an unlocking whose time is not over. sealed: the private key, of a locked
-- key its ncryptsec, of a deleted one nothing. security: NIP-49's byte; of keys from before now nobody kept track.
CREATE TABLE nostr_key_after (
    owner                 TEXT NOT NULL,
    key_id                TEXT NOT NULL,
    pubkey                TEXT NOT NULL CHECK (length(pubkey) = 64),
    sealed                BLOB NOT NULL,
    display_name          TEXT NOT NULL,
    create_time_us        INTEGER NOT NULL,
    request_id            TEXT,
    request_sha256        BLOB,
    condition             TEXT NOT NULL CHECK (condition IN ('ACTIVE', 'LOCKED', 'DISABLED', 'DISABLED_LOCKED', 'DELETED')),
    security              INTEGER NOT NULL CHECK (security BETWEEN 0 AND 2),
    unlock_sealed         BLOB,
    unlock_expire_time_us INTEGER,
    delete_time_us        INTEGER,
    relays                BLOB NOT NULL,      -- nipmesh.nip.v1.GetRelaysResponse
    PRIMARY KEY (owner, key_id),
    CHECK ((unlock_sealed IS NULL) = (unlock_expire_time_us IS NULL)),
    CHECK (unlock_sealed IS NULL OR condition = 'LOCKED'),
    CHECK ((condition = 'DELETED') = (length(sealed) = 0)),
    CHECK ((condition = 'DELETED') = (delete_time_us IS NOT NULL))
) STRICT, WITHOUT ROWID;
INSERT INTO nostr_key_after
    SELECT owner, key_id, pubkey, sealed, display_name, create_time_us, request_id, request_sha256, 'ACTIVE', 2, NULL, NULL, NULL, x''
    FROM nostr_key;
DROP TABLE nostr_key;
ALTER TABLE nostr_key_after RENAME TO nostr_key;
CREATE UNIQUE INDEX nostr_key_by_request ON nostr_key (owner, request_id) WHERE request_id IS NOT NULL;
-- A deleted key may be taken over again.
CREATE UNIQUE INDEX nostr_key_by_pubkey ON nostr_key (owner, pubkey) WHERE condition <> 'DELETED';
CREATE INDEX nostr_key_unlocked ON nostr_key (unlock_expire_time_us) WHERE unlock_expire_time_us IS NOT NULL;

-- Wrong (or running) attempts at a key's password since the last right one.
CREATE TABLE password_attempt (
    owner            TEXT NOT NULL,
    key_id           TEXT NOT NULL,
    wrong            INTEGER NOT NULL CHECK (wrong > 0),
    blocked_until_us INTEGER NOT NULL,
    PRIMARY KEY (owner, key_id)
) STRICT, WITHOUT ROWID;
