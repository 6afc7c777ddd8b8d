-- Hold invoices, and payments from outside; all rows are kept.
--
-- Phase: 1 OPEN, 2 LOCKED, 3 RESERVED, 4 ARRIVED, 5 HELD, 6 SETTLING, 7 POSTING, 8 CANCELING, 9 VOIDING, 10 SETTLED, 11 CANCELED,
-- 12 EXPIRED. Invoices that were made before now were never listed at a node: at_node is 2.
ALTER TABLE invoice ALTER COLUMN preimage DROP NOT NULL;   -- NULL: only the owner knows it
ALTER TABLE invoice
    ADD COLUMN phase BIGINT NOT NULL DEFAULT 1,
    ADD COLUMN amount_held_msat BIGINT NOT NULL DEFAULT 0,
    ADD COLUMN metadata TEXT COLLATE "C" NOT NULL DEFAULT '{}',  -- JSON object of strings, for the owner alone
    ADD COLUMN hold BIGINT NOT NULL DEFAULT 0,
    ADD COLUMN settle_duration_s BIGINT NOT NULL DEFAULT 0,      -- 0 unless hold
    ADD COLUMN accept_time_ms BIGINT,                            -- from here to settle_deadline_ms the owner decides
    ADD COLUMN settle_deadline_ms BIGINT,
    ADD COLUMN at_node BIGINT NOT NULL DEFAULT 2,                -- 1 listed, 2 closed
    ADD COLUMN next_run_ms BIGINT,                               -- when a replica has to look at it; NULL: there is nothing to do
    ADD COLUMN attempt BIGINT NOT NULL DEFAULT 0;
UPDATE invoice SET
    phase = CASE WHEN state < 3 THEN state ELSE state + 7 END,
    amount_held_msat = CASE WHEN state = 2 THEN (
        SELECT held.amount_msat FROM invoice_hold AS held WHERE held.payment_id = invoice.locked_by
    ) ELSE 0 END;
ALTER TABLE invoice
    ADD CHECK (phase BETWEEN 1 AND 12),
    ADD CHECK (hold IN (0, 1)),
    ADD CHECK (at_node IN (1, 2)),
    ADD CHECK ((state = 1) = (phase = 1)),
    ADD CHECK ((state = 2) = (phase BETWEEN 2 AND 9)),
    ADD CHECK (state < 3 OR phase = state + 7),
    ADD CHECK ((amount_held_msat > 0) = (state = 2)),
    ADD CHECK (preimage IS NOT NULL OR (hold = 1 AND state <> 3)),
    ADD CHECK ((hold = 1) = (settle_duration_s > 0)),
    ADD CHECK ((accept_time_ms IS NULL) = (settle_deadline_ms IS NULL)),
    ADD CHECK (phase NOT BETWEEN 4 AND 9 OR next_run_ms IS NOT NULL);
CREATE INDEX invoice_by_run ON invoice (next_run_ms) WHERE next_run_ms IS NOT NULL;
CREATE INDEX invoice_listed ON invoice (invoice_id) WHERE state = 1 AND at_node = 1;

-- State: 1 HELD, 2 COMMITTED, 3 RELEASED, 4 RESERVED, 5 RETURNED.
ALTER TABLE invoice_hold DROP CONSTRAINT invoice_hold_state_check;
ALTER TABLE invoice_hold ADD CHECK (state BETWEEN 1 AND 5);
DROP INDEX invoice_hold_one_per_invoice;
CREATE UNIQUE INDEX invoice_hold_one_per_invoice ON invoice_hold (invoice_id) WHERE state IN (1, 2, 4);
