-- What the storage package keeps in every service's database.

-- Requests that were made with a request_id, and their answers.
CREATE TABLE storage_idempotency (
    scope TEXT NOT NULL,             -- whose: the token's subject, else the SPIFFE id
    method TEXT NOT NULL,            -- "/package.Service/Method"
    request_id TEXT NOT NULL,
    request_sha256 BYTEA NOT NULL,    -- of the request without its request_id
    response BYTEA,                   -- NULL while the call runs
    create_time_ms BIGINT NOT NULL,
    PRIMARY KEY (scope, method, request_id)
);
CREATE INDEX storage_idempotency_by_time ON storage_idempotency (create_time_ms);

-- The outbox: what changed, in the order of the commits; its sequence is also the cursor of the Watch methods.
CREATE TABLE storage_event (
    sequence BIGINT PRIMARY KEY,     -- without gaps: a number that is not there was taken away
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    payload BYTEA NOT NULL,
    traceparent TEXT NOT NULL,
    create_time_ms BIGINT NOT NULL
);
CREATE INDEX storage_event_by_time ON storage_event (create_time_ms);

-- Facts about this database; `page_token_key` is made at random with it.
CREATE TABLE storage_fact (
    name TEXT NOT NULL PRIMARY KEY,
    value BYTEA NOT NULL
);
INSERT INTO storage_fact (name, value) VALUES ('page_token_key', decode(replace(CAST(gen_random_uuid() AS TEXT) || CAST(gen_random_uuid() AS TEXT), '-', ''), 'hex'));
INSERT INTO storage_fact (name, value) VALUES ('events_removed_to', '0');

-- The number of the next event. Writers take turns (an advisory lock), so it is nobody else's; a write that is undone gives it back.
CREATE FUNCTION storage_next_sequence() RETURNS BIGINT LANGUAGE sql VOLATILE AS $$
    SELECT greatest(
        coalesce((SELECT max(sequence) FROM storage_event), 0),
        (SELECT CAST(convert_from(value, 'UTF8') AS BIGINT) FROM storage_fact WHERE name = 'events_removed_to')
    ) + 1
$$;
ALTER TABLE storage_event ALTER COLUMN sequence SET DEFAULT storage_next_sequence();
