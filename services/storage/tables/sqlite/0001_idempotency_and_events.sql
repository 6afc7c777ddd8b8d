-- What the storage package keeps in every service's database.

-- Requests that were made with a request_id, and their answers.
CREATE TABLE storage_idempotency (
    scope TEXT NOT NULL,             -- whose: the token's subject, else the SPIFFE id
    method TEXT NOT NULL,            -- "/package.Service/Method"
    request_id TEXT NOT NULL,
    request_sha256 BLOB NOT NULL,    -- of the request without its request_id
    response BLOB,                   -- NULL while the call runs
    create_time_ms INTEGER NOT NULL,
    PRIMARY KEY (scope, method, request_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX storage_idempotency_by_time ON storage_idempotency (create_time_ms);

-- The outbox: what changed, in the order of the commits; its sequence is also the cursor of the Watch methods.
CREATE TABLE storage_event (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    payload BLOB NOT NULL,
    traceparent TEXT NOT NULL,
    create_time_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX storage_event_by_time ON storage_event (create_time_ms);

-- Facts about this database; `page_token_key` is made at random with it.
CREATE TABLE storage_fact (
    name TEXT NOT NULL PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO storage_fact (name, value) VALUES ('page_token_key', randomblob(32));
INSERT INTO storage_fact (name, value) VALUES ('events_removed_to', CAST('0' AS BLOB));
