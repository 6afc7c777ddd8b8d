-- Invoices. State: 1 OPEN, 2 ACCEPTED, 3 SETTLED, 4 CANCELED, 5 EXPIRED. Times in milliseconds since 1970, amounts in millisatoshi.
CREATE TABLE invoice (
    invoice_id TEXT NOT NULL PRIMARY KEY,
    owner_pubkey TEXT NOT NULL,
    account_id TEXT NOT NULL,
    state BIGINT NOT NULL CHECK (state BETWEEN 1 AND 5),
    payment_request TEXT NOT NULL UNIQUE,
    payment_hash TEXT NOT NULL UNIQUE,
    preimage BYTEA NOT NULL CHECK (length(preimage) = 32),
    amount_msat BIGINT CHECK (amount_msat > 0),          -- NULL: the payer chooses
    amount_paid_msat BIGINT NOT NULL,
    description TEXT NOT NULL,
    description_hash TEXT NOT NULL,
    create_time_ms BIGINT NOT NULL,
    expire_time_ms BIGINT NOT NULL,
    settle_time_ms BIGINT,
    update_time_ms BIGINT NOT NULL,
    locked_by TEXT,                                       -- the payment that holds or settled it
    sequence BIGINT NOT NULL,                            -- of its newest event
    CHECK ((locked_by IS NOT NULL) = (state IN (2, 3))),
    CHECK ((settle_time_ms IS NOT NULL) = (state = 3)),
    CHECK ((amount_paid_msat > 0) = (state = 3)),
    CHECK (state <> 3 OR amount_msat IS NULL OR amount_msat = amount_paid_msat)
);
CREATE INDEX invoice_by_owner ON invoice (owner_pubkey, create_time_ms, invoice_id);
CREATE INDEX invoice_by_time ON invoice (create_time_ms, invoice_id);
CREATE INDEX invoice_by_expiry ON invoice (expire_time_ms) WHERE state = 1;

-- What payments did with invoices. State: 1 HELD, 2 COMMITTED, 3 RELEASED. A released row is a tombstone: its payment never locks again.
CREATE TABLE invoice_hold (
    payment_id TEXT NOT NULL PRIMARY KEY,
    invoice_id TEXT REFERENCES invoice (invoice_id),      -- NULL: released before it ever locked
    state BIGINT NOT NULL CHECK (state BETWEEN 1 AND 3),
    amount_msat BIGINT NOT NULL,
    actor_pubkey TEXT NOT NULL,
    update_time_ms BIGINT NOT NULL,
    CHECK (invoice_id IS NOT NULL OR state = 3)
);
CREATE UNIQUE INDEX invoice_hold_one_per_invoice ON invoice_hold (invoice_id) WHERE state IN (1, 2);
