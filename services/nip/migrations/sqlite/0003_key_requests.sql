-- Under which request_id a key was made: kept as long as the key, where requests of other kinds are forgotten after days. NULL: made before;
-- its request, if it is remembered still, is in storage_idempotency.
ALTER TABLE nostr_key ADD COLUMN request_id TEXT;
ALTER TABLE nostr_key ADD COLUMN request_sha256 BLOB;
CREATE UNIQUE INDEX nostr_key_by_request ON nostr_key (owner, request_id) WHERE request_id IS NOT NULL;
