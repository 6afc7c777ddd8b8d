-- The ledger becomes a chain of hashes (see domain/chain.py), accounts get quotas, and what happens to them is kept.

DROP TRIGGER transfer_is_immutable;
DROP TRIGGER transfer_is_kept;
DROP INDEX transfer_by_debit;
DROP INDEX transfer_by_credit;
DROP INDEX transfer_by_payment;
DROP INDEX transfer_resolution;
ALTER TABLE transfer RENAME TO transfer_unchained;

-- SQL cannot hash: at its next start, before it serves, the program moves the rows of `transfer_unchained` into the new table, drops the
-- old one and forgets this note (store/chaining.py).
INSERT INTO memory (name, value) VALUES ('ledger_unchained', 'transfer_unchained');

-- Immutable. `number` is the place in the ledger, shared with account_event: 1, 2, 3, … without gaps.
CREATE TABLE transfer (
  number              INTEGER PRIMARY KEY CHECK (number > 0),
  transfer_id         TEXT NOT NULL UNIQUE,
  kind                INTEGER NOT NULL CHECK (kind IN (1, 2, 3, 4)),
  debit_account_id    TEXT NOT NULL REFERENCES account (account_id),
  credit_account_id   TEXT NOT NULL REFERENCES account (account_id),
  amount_msat         INTEGER NOT NULL CHECK (amount_msat > 0),
  purpose             INTEGER NOT NULL,
  pending_transfer_id TEXT,
  payment_id          TEXT,
  reference           TEXT NOT NULL DEFAULT '',
  create_time_ms      INTEGER NOT NULL,
  sha256              BLOB NOT NULL CHECK (length(sha256) = 32),
  CHECK (debit_account_id <> credit_account_id)
) STRICT;

CREATE INDEX transfer_by_debit ON transfer (debit_account_id, number);
CREATE INDEX transfer_by_credit ON transfer (credit_account_id, number);
CREATE INDEX transfer_by_payment ON transfer (payment_id, number) WHERE payment_id IS NOT NULL;
-- A reservation is resolved once: posted or voided, never both.
CREATE UNIQUE INDEX transfer_resolution ON transfer (pending_transfer_id) WHERE pending_transfer_id IS NOT NULL;

CREATE TRIGGER transfer_is_immutable BEFORE UPDATE ON transfer BEGIN SELECT RAISE (ABORT, 'a transfer is immutable'); END;
CREATE TRIGGER transfer_is_kept BEFORE DELETE ON transfer BEGIN SELECT RAISE (ABORT, 'a transfer is immutable'); END;

-- Who opened, froze, unfroze, closed an account or set its quota, when and why. Immutable, in one chain with the transfers.
CREATE TABLE account_event (
  number              INTEGER PRIMARY KEY CHECK (number > 0),
  account_id          TEXT NOT NULL REFERENCES account (account_id),
  kind                INTEGER NOT NULL CHECK (kind IN (1, 2, 3, 4, 5)),
  actor               TEXT NOT NULL,               -- token subject, else SPIFFE id; '' for the service itself
  reason              TEXT NOT NULL DEFAULT '',
  details             TEXT NOT NULL DEFAULT '',
  create_time_ms      INTEGER NOT NULL,
  sha256              BLOB NOT NULL CHECK (length(sha256) = 32)
) STRICT;

CREATE INDEX account_event_by_account ON account_event (account_id, number);

CREATE TRIGGER account_event_is_immutable BEFORE UPDATE ON account_event BEGIN SELECT RAISE (ABORT, 'an account event is immutable'); END;
CREATE TRIGGER account_event_is_kept BEFORE DELETE ON account_event BEGIN SELECT RAISE (ABORT, 'an account event is immutable'); END;

-- What the owner may spend; NULL is without limit. `spent_*` counts the newest day of spending, in days since 1970 (UTC).
ALTER TABLE account ADD COLUMN quota_payment_msat INTEGER CHECK (quota_payment_msat >= 0);
ALTER TABLE account ADD COLUMN quota_day_msat INTEGER CHECK (quota_day_msat >= 0);
ALTER TABLE account ADD COLUMN quota_pending_msat INTEGER CHECK (quota_pending_msat >= 0);
ALTER TABLE account ADD COLUMN spent_day INTEGER NOT NULL DEFAULT 0;
ALTER TABLE account ADD COLUMN spent_msat INTEGER NOT NULL DEFAULT 0;
