-- What the simulated Lightning network remembers, in a file of its own: it is another system, with its own commits.

CREATE TABLE attempt (                           -- payments of our node, the newest attempt of each
  payment_hash    TEXT PRIMARY KEY,
  state           INTEGER NOT NULL,              -- 1 in flight, 2 paid, 3 failed
  fate            INTEGER NOT NULL,              -- how it ends at due_time_ms: 1 paid, 2 failed, 3 hung until then, then failed
  failure         TEXT NOT NULL,                 -- why, should it fail
  payee           TEXT NOT NULL,
  amount_msat     INTEGER NOT NULL,
  fee_msat        INTEGER NOT NULL,
  preimage        TEXT NOT NULL,                 -- what the payee reveals; empty when nobody here knows it
  route           TEXT NOT NULL,                 -- JSON: [channel, whether the left node sends, msat] for each limited channel
  final_delta_blocks INTEGER NOT NULL,           -- time lock that the payee asks for
  arrived         INTEGER NOT NULL,              -- 1: held by a node that shares this file, which decides
  due_time_ms     INTEGER NOT NULL,              -- not decided before
  times_begun     INTEGER NOT NULL,              -- how often an attempt was begun: more than once only after a failure
  times_paid      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX attempt_due ON attempt (due_time_ms) WHERE state = 1 AND arrived = 0;

CREATE TABLE channel (                           -- what has become of limited channels since the beginning
  channel_id      TEXT PRIMARY KEY,
  moved_msat      INTEGER NOT NULL,              -- from the left node to the right one
  left_held_msat  INTEGER NOT NULL,              -- sent by the left node and in flight
  right_held_msat INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE ruling (                            -- what somebody ordered to become of a payment
  payment_hash    TEXT PRIMARY KEY,
  word            TEXT NOT NULL                  -- pay, fail or hang
) STRICT, WITHOUT ROWID;

CREATE TABLE receiver (                          -- nodes that are paid into this file
  pubkey          TEXT PRIMARY KEY
) STRICT, WITHOUT ROWID;

CREATE TABLE received (                          -- invoices of those nodes, from the first time that something happened to them
  payment_hash    TEXT PRIMARY KEY,
  state           INTEGER NOT NULL,              -- 2 accepted, 3 settled, 4 canceled
  payer           TEXT NOT NULL,                 -- node: ours, by an attempt; outside; empty: nobody ever paid
  amount_msat     INTEGER NOT NULL,
  deadline_ms     INTEGER,                       -- while accepted: the money goes back by itself then
  preimage        TEXT NOT NULL                  -- once settled
) STRICT, WITHOUT ROWID;

CREATE INDEX received_deadline ON received (deadline_ms) WHERE state = 2;

CREATE TABLE received_change (                   -- the newest changes of invoices, for whoever subscribes
  sequence        INTEGER PRIMARY KEY,
  time_ms         INTEGER NOT NULL,
  payment_hash    TEXT NOT NULL,
  state           INTEGER NOT NULL,
  amount_msat     INTEGER NOT NULL,
  deadline_ms     INTEGER
) STRICT;

CREATE TABLE counter (
  name            TEXT PRIMARY KEY,
  value           INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO counter (name, value) VALUES ('change', 0);
