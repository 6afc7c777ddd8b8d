-- Payments of hold invoices, and money that the Lightning node holds for invoices of this mesh.

ALTER TABLE saga ADD COLUMN woken INTEGER NOT NULL DEFAULT 0;  -- 1: something happened since the claim, so parking is in vain

-- 3 waiting: parked until somebody else did something; claimed after what runs
CREATE INDEX saga_waiting ON saga (next_run_at) WHERE state = 3;

-- What the invoice service asked for; a row without an account is the tombstone of an invoice that was voided before it was held.
CREATE TABLE invoice_credit (
  invoice_id          TEXT PRIMARY KEY,
  state               INTEGER NOT NULL CHECK (state IN (1, 2, 3)),  -- 1 held, 2 posted, 3 voided
  account_id          TEXT REFERENCES account (account_id),
  amount_msat         INTEGER NOT NULL CHECK (amount_msat >= 0),
  update_time_ms      INTEGER NOT NULL,
  CHECK (account_id IS NOT NULL OR state = 3)
) STRICT, WITHOUT ROWID;

-- What operators decided about payments whose outcome nobody else could tell.
CREATE TABLE payment_resolution (
  payment_id          TEXT PRIMARY KEY REFERENCES payment (payment_id),
  operator            TEXT NOT NULL,               -- public key
  succeeded           INTEGER NOT NULL CHECK (succeeded IN (0, 1)),
  reason              TEXT NOT NULL,
  create_time_ms      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
