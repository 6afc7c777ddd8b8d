-- Accounts, transfers, payments and their sagas. Amounts are millisatoshi, times milliseconds since 1970.

CREATE TABLE account (
  number              INTEGER PRIMARY KEY,
  account_id          TEXT NOT NULL UNIQUE,
  owner               TEXT NOT NULL,               -- x-only public key, or '' for the accounts of the house
  state               INTEGER NOT NULL CHECK (state IN (1, 2, 3)),
  must_cover          INTEGER NOT NULL CHECK (must_cover IN (0, 1)),  -- 1: the available balance never goes below zero
  debits_pending_msat  INTEGER NOT NULL DEFAULT 0 CHECK (debits_pending_msat >= 0),
  debits_posted_msat   INTEGER NOT NULL DEFAULT 0 CHECK (debits_posted_msat >= 0),
  credits_pending_msat INTEGER NOT NULL DEFAULT 0 CHECK (credits_pending_msat >= 0),
  credits_posted_msat  INTEGER NOT NULL DEFAULT 0 CHECK (credits_posted_msat >= 0),
  create_time_ms      INTEGER NOT NULL,
  CHECK (must_cover = 0 OR credits_posted_msat - debits_posted_msat - debits_pending_msat >= 0)
) STRICT;

CREATE INDEX account_by_owner ON account (owner, number);

-- Immutable: no statement of this service updates or deletes a row here.
CREATE TABLE transfer (
  number              INTEGER PRIMARY KEY,
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
  CHECK (debit_account_id <> credit_account_id)
) STRICT;

CREATE INDEX transfer_by_debit ON transfer (debit_account_id, number);
CREATE INDEX transfer_by_credit ON transfer (credit_account_id, number);
CREATE INDEX transfer_by_payment ON transfer (payment_id, number) WHERE payment_id IS NOT NULL;
-- A reservation is resolved once: posted or voided, never both.
CREATE UNIQUE INDEX transfer_resolution ON transfer (pending_transfer_id) WHERE pending_transfer_id IS NOT NULL;

CREATE TRIGGER transfer_is_immutable BEFORE UPDATE ON transfer BEGIN SELECT RAISE (ABORT, 'a transfer is immutable'); END;
CREATE TRIGGER transfer_is_kept BEFORE DELETE ON transfer BEGIN SELECT RAISE (ABORT, 'a transfer is immutable'); END;

CREATE TABLE payment (
  number              INTEGER PRIMARY KEY,
  payment_id          TEXT NOT NULL UNIQUE,
  account_id          TEXT NOT NULL REFERENCES account (account_id),
  scope               TEXT NOT NULL,               -- who called: token subject, else SPIFFE id
  request_id          TEXT NOT NULL,
  state               INTEGER NOT NULL,
  payment_request     TEXT NOT NULL,
  payment_hash        TEXT NOT NULL,
  amount_msat         INTEGER NOT NULL,
  fee_limit_msat      INTEGER NOT NULL,
  fee_msat            INTEGER NOT NULL DEFAULT 0,
  internal            INTEGER NOT NULL DEFAULT 0,
  simulated           INTEGER NOT NULL DEFAULT 0,
  payee_account_id    TEXT NOT NULL DEFAULT '',
  preimage            TEXT NOT NULL DEFAULT '',
  failure             INTEGER NOT NULL DEFAULT 0,
  refunded_msat       INTEGER NOT NULL DEFAULT 0 CHECK (refunded_msat BETWEEN 0 AND amount_msat),
  receipt_json        TEXT NOT NULL DEFAULT '',
  create_time_ms      INTEGER NOT NULL,
  update_time_ms      INTEGER NOT NULL,
  settle_time_ms      INTEGER NOT NULL DEFAULT 0,
  sequence            INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE INDEX payment_by_account ON payment (account_id, number);
CREATE INDEX payment_by_request ON payment (scope, request_id);
CREATE INDEX payment_by_hash ON payment (payment_hash, number);
-- RESERVED, IN_FLIGHT, SUCCEEDED, REFUNDED: an invoice is paid at most once.
CREATE UNIQUE INDEX payment_once ON payment (payment_hash) WHERE state IN (2, 3, 4, 6);

CREATE TABLE saga (
  id                  TEXT PRIMARY KEY,            -- the payment's id
  kind                TEXT NOT NULL,
  step                TEXT NOT NULL,
  state               INTEGER NOT NULL,            -- 1 running, 2 done
  owner               TEXT NOT NULL,               -- the process that holds the lease, or held it last
  lease_until         INTEGER NOT NULL,            -- 0: given back
  fence               INTEGER NOT NULL,            -- grows with every claim: an old owner's writes match no row
  attempt             INTEGER NOT NULL,
  next_run_at         INTEGER NOT NULL,
  data                TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX saga_due ON saga (next_run_at) WHERE state = 1;

CREATE TABLE saga_step (
  saga_id             TEXT NOT NULL,
  number              INTEGER NOT NULL,
  step                TEXT NOT NULL,
  state               INTEGER NOT NULL,            -- of SagaStep.State: 2 done, 3 failed, 4 compensated
  attempt             INTEGER NOT NULL,
  start_time_ms       INTEGER NOT NULL,
  end_time_ms         INTEGER NOT NULL,
  error               TEXT NOT NULL DEFAULT '',
  PRIMARY KEY (saga_id, number)
) STRICT, WITHOUT ROWID;

-- What this service remembers about itself, such as the id of its receipt key.
CREATE TABLE memory (
  name                TEXT PRIMARY KEY,
  value               TEXT NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO account (account_id, owner, state, must_cover, create_time_ms) VALUES
  ('node:lightning', '', 1, 0, 0),
  ('fees:routing', '', 1, 0, 0),
  ('fees:service', '', 1, 0, 0),
  ('suspense', '', 1, 0, 0);
