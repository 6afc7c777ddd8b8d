-- Hold invoices, and payments from outside. SQLite changes no column in place: both tables are made anew, and all rows are kept.
--
-- Phase: 1 OPEN, 2 LOCKED, 3 RESERVED, 4 ARRIVED, 5 HELD, 6 SETTLING, 7 POSTING, 8 CANCELING, 9 VOIDING, 10 SETTLED, 11 CANCELED,
-- 12 EXPIRED. Invoices that were made before now were never listed at a node: at_node is 2.
CREATE TABLE invoice_hold_before (
    payment_id TEXT NOT NULL PRIMARY KEY,
    invoice_id TEXT,
    state INTEGER NOT NULL,
    amount_msat INTEGER NOT NULL,
    actor_pubkey TEXT NOT NULL,
    update_time_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO invoice_hold_before
    SELECT payment_id, invoice_id, state, amount_msat, actor_pubkey, update_time_ms FROM invoice_hold;
DROP TABLE invoice_hold;

CREATE TABLE invoice_after (
    invoice_id TEXT NOT NULL PRIMARY KEY,
    owner_pubkey TEXT NOT NULL,
    account_id TEXT NOT NULL,
    state INTEGER NOT NULL CHECK (state BETWEEN 1 AND 5),
    phase INTEGER NOT NULL CHECK (phase BETWEEN 1 AND 12),
    payment_request TEXT NOT NULL UNIQUE,
    payment_hash TEXT NOT NULL UNIQUE,
    preimage BLOB CHECK (length(preimage) = 32),          -- NULL: only the owner knows it
    amount_msat INTEGER CHECK (amount_msat > 0),          -- NULL: the payer chooses
    amount_held_msat INTEGER NOT NULL,
    amount_paid_msat INTEGER NOT NULL,
    description TEXT NOT NULL,
    description_hash TEXT NOT NULL,
    metadata TEXT NOT NULL,                               -- JSON object of strings, for the owner alone
    hold INTEGER NOT NULL CHECK (hold IN (0, 1)),
    settle_duration_s INTEGER NOT NULL,                   -- 0 unless hold
    create_time_ms INTEGER NOT NULL,
    expire_time_ms INTEGER NOT NULL,
    accept_time_ms INTEGER,                               -- from here to settle_deadline_ms the owner decides
    settle_deadline_ms INTEGER,
    settle_time_ms INTEGER,
    update_time_ms INTEGER NOT NULL,
    locked_by TEXT,                                       -- the payment that holds or settled it; 'node': from outside
    at_node INTEGER NOT NULL CHECK (at_node IN (1, 2)),   -- 1 listed, 2 closed
    next_run_ms INTEGER,                                  -- when a replica has to look at it; NULL: there is nothing to do
    attempt INTEGER NOT NULL,
    sequence INTEGER NOT NULL,                            -- of its newest event
    CHECK ((state = 1) = (phase = 1)),
    CHECK ((state = 2) = (phase BETWEEN 2 AND 9)),
    CHECK (state < 3 OR phase = state + 7),
    CHECK ((locked_by IS NOT NULL) = (state IN (2, 3))),
    CHECK ((settle_time_ms IS NOT NULL) = (state = 3)),
    CHECK ((amount_held_msat > 0) = (state = 2)),
    CHECK ((amount_paid_msat > 0) = (state = 3)),
    CHECK (state <> 3 OR amount_msat IS NULL OR amount_msat = amount_paid_msat),
    CHECK (preimage IS NOT NULL OR (hold = 1 AND state <> 3)),
    CHECK ((hold = 1) = (settle_duration_s > 0)),
    CHECK ((accept_time_ms IS NULL) = (settle_deadline_ms IS NULL)),
    CHECK (phase NOT BETWEEN 4 AND 9 OR next_run_ms IS NOT NULL)
) STRICT;
INSERT INTO invoice_after
    SELECT invoice_id, owner_pubkey, account_id, state, CASE WHEN state < 3 THEN state ELSE state + 7 END,
        payment_request, payment_hash, preimage, amount_msat,
        CASE WHEN state = 2 THEN (
            SELECT held.amount_msat FROM invoice_hold_before AS held WHERE held.payment_id = invoice.locked_by
        ) ELSE 0 END,
        amount_paid_msat, description, description_hash, '{}', 0, 0, create_time_ms, expire_time_ms, NULL, NULL,
        settle_time_ms, update_time_ms, locked_by, 2, NULL, 0, sequence
    FROM invoice;
DROP TABLE invoice;
ALTER TABLE invoice_after RENAME TO invoice;
CREATE INDEX invoice_by_owner ON invoice (owner_pubkey, create_time_ms, invoice_id);
CREATE INDEX invoice_by_time ON invoice (create_time_ms, invoice_id);
CREATE INDEX invoice_by_expiry ON invoice (expire_time_ms) WHERE state = 1;
CREATE INDEX invoice_by_run ON invoice (next_run_ms) WHERE next_run_ms IS NOT NULL;
CREATE INDEX invoice_listed ON invoice (invoice_id) WHERE state = 1 AND at_node = 1;

-- State: 1 HELD, 2 COMMITTED, 3 RELEASED, 4 RESERVED, 5 RETURNED.
CREATE TABLE invoice_hold (
    payment_id TEXT NOT NULL PRIMARY KEY,
    invoice_id TEXT REFERENCES invoice (invoice_id),      -- NULL: released before it ever locked
    state INTEGER NOT NULL CHECK (state BETWEEN 1 AND 5),
    amount_msat INTEGER NOT NULL,
    actor_pubkey TEXT NOT NULL,
    update_time_ms INTEGER NOT NULL,
    CHECK (invoice_id IS NOT NULL OR state = 3)
) STRICT, WITHOUT ROWID;
INSERT INTO invoice_hold
    SELECT payment_id, invoice_id, state, amount_msat, actor_pubkey, update_time_ms FROM invoice_hold_before;
DROP TABLE invoice_hold_before;
CREATE UNIQUE INDEX invoice_hold_one_per_invoice ON invoice_hold (invoice_id) WHERE state IN (1, 2, 4);
