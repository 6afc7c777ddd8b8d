-- Receipts of zaps, one for each settled invoice with a zap request: the signed event as JSON.
CREATE TABLE zap_receipt (
    invoice_id TEXT NOT NULL PRIMARY KEY,
    owner_pubkey TEXT NOT NULL,      -- whose invoice it is
    event_id TEXT NOT NULL UNIQUE,
    event TEXT NOT NULL,
    create_time_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Where each is published, and how far that is. State: 1 PENDING, 2 ACCEPTED, 3 REFUSED, 4 GIVEN_UP. The last three are final.
CREATE TABLE nostr_publication (
    event_id TEXT NOT NULL REFERENCES zap_receipt (event_id),
    relay_url TEXT NOT NULL,
    state INTEGER NOT NULL CHECK (state BETWEEN 1 AND 4),
    attempts INTEGER NOT NULL,
    next_run_ms INTEGER,                -- from here on any replica tries it; whoever tries moves it on first, by a lease. NULL: final
    give_up_time_ms INTEGER NOT NULL,
    problem TEXT NOT NULL,           -- what was wrong the last time; empty: nothing
    PRIMARY KEY (event_id, relay_url),
    CHECK ((state = 1) = (next_run_ms IS NOT NULL))
) STRICT, WITHOUT ROWID;
CREATE INDEX nostr_publication_due ON nostr_publication (next_run_ms) WHERE next_run_ms IS NOT NULL;
