-- Keys that are locked with a password, disabled or deleted.
--
-- condition: what stands in the row; an unlocked key is LOCKED with an unlocking whose time is not over. sealed: the private key, of a locked
-- key its ncryptsec, of a deleted one nothing. security: NIP-49's byte; of keys from before now nobody kept track. relays: a
-- nipmesh.nip.v1.GetRelaysResponse.
ALTER TABLE nostr_key
    ADD COLUMN condition TEXT NOT NULL DEFAULT 'ACTIVE'
        CHECK (condition IN ('ACTIVE', 'LOCKED', 'DISABLED', 'DISABLED_LOCKED', 'DELETED')),
    ADD COLUMN security BIGINT NOT NULL DEFAULT 2 CHECK (security BETWEEN 0 AND 2),
    ADD COLUMN unlock_sealed BYTEA,
    ADD COLUMN unlock_expire_time_us BIGINT,
    ADD COLUMN delete_time_us BIGINT,
    ADD COLUMN relays BYTEA NOT NULL DEFAULT '',
    ADD CHECK ((unlock_sealed IS NULL) = (unlock_expire_time_us IS NULL)),
    ADD CHECK (unlock_sealed IS NULL OR condition = 'LOCKED'),
    ADD CHECK ((condition = 'DELETED') = (length(sealed) = 0)),
    ADD CHECK ((condition = 'DELETED') = (delete_time_us IS NOT NULL)),
    DROP CONSTRAINT nostr_key_owner_pubkey_key;
ALTER TABLE nostr_key ALTER COLUMN condition DROP DEFAULT, ALTER COLUMN security DROP DEFAULT, ALTER COLUMN relays DROP DEFAULT;

-- A deleted key may be taken over again.
CREATE UNIQUE INDEX nostr_key_by_pubkey ON nostr_key (owner, pubkey) WHERE condition <> 'DELETED';
CREATE INDEX nostr_key_unlocked ON nostr_key (unlock_expire_time_us) WHERE unlock_expire_time_us IS NOT NULL;

-- Wrong (or running) attempts at a key's password since the last right one.
CREATE TABLE password_attempt (
    owner            TEXT NOT NULL,
    key_id           TEXT NOT NULL,
    wrong            BIGINT NOT NULL CHECK (wrong > 0),
    blocked_until_us BIGINT NOT NULL,
    PRIMARY KEY (owner, key_id)
);
