-- What the simulated Lightning network remembers, in a file of its own: it is another system, with its own commits.

CREATE TABLE attempt (                           -- payments of our node, the newest attempt of each
  payment_hash    TEXT PRIMARY KEY,
  state           BIGINT  NOT NULL,              -- 1 in flight, 2 paid, 3 failed
  fate            BIGINT  NOT NULL,              -- how it ends at due_time_ms: 1 paid, 2 failed, 3 hung until then, then failed
  failure         TEXT NOT NULL,                 -- why, should it fail
  payee           TEXT NOT NULL,
  amount_msat     BIGINT  NOT NULL,
  fee_msat        BIGINT  NOT NULL,
  preimage        TEXT NOT NULL,                 -- what the payee reveals; empty when nobody here knows it
  route           TEXT NOT NULL,                 -- JSON: [channel, whether the left node sends, msat] for each limited channel
  final_delta_blocks BIGINT  NOT NULL,           -- time lock that the payee asks for
  arrived         BIGINT  NOT NULL,              -- 1: held by a node that shares this file, which decides
  due_time_ms     BIGINT  NOT NULL,              -- not decided before
  times_begun     BIGINT  NOT NULL,              -- how often an attempt was begun: more than once only after a failure
  times_paid      BIGINT  NOT NULL
);

CREATE INDEX attempt_due ON attempt (due_time_ms) WHERE state = 1 AND arrived = 0;

CREATE TABLE channel (                           -- what has become of limited channels since the beginning
  channel_id      TEXT PRIMARY KEY,
  moved_msat      BIGINT  NOT NULL,              -- from the left node to the right one
  left_held_msat  BIGINT  NOT NULL,              -- sent by the left node and in flight
  right_held_msat BIGINT  NOT NULL
);

CREATE TABLE ruling (                            -- what somebody ordered to become of a payment
  payment_hash    TEXT PRIMARY KEY,
  word            TEXT NOT NULL                  -- pay, fail or hang
);

CREATE TABLE receiver (                          -- nodes that are paid into this file
  pubkey          TEXT PRIMARY KEY
);

CREATE TABLE received (                          -- invoices of those nodes, from the first time that something happened to them
  payment_hash    TEXT PRIMARY KEY,
  state           BIGINT  NOT NULL,              -- 2 accepted, 3 settled, 4 canceled
  payer           TEXT NOT NULL,                 -- node: ours, by an attempt; outside; empty: nobody ever paid
  amount_msat     BIGINT  NOT NULL,
  deadline_ms     BIGINT ,                       -- while accepted: the money goes back by itself then
  preimage        TEXT NOT NULL                  -- once settled
);

CREATE INDEX received_deadline ON received (deadline_ms) WHERE state = 2;

CREATE TABLE received_change (                   -- the newest changes of invoices, for whoever subscribes
  sequence        BIGINT PRIMARY KEY,
  time_ms         BIGINT  NOT NULL,
  payment_hash    TEXT NOT NULL,
  state           BIGINT  NOT NULL,
  amount_msat     BIGINT  NOT NULL,
  deadline_ms     BIGINT 
);

CREATE TABLE counter (
  name            TEXT PRIMARY KEY,
  value           BIGINT  NOT NULL
);

INSERT INTO counter (name, value) VALUES ('change', 0);
