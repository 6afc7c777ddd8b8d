-- What the simulated Lightning node remembers, in a file of its own: it is another system, with its own commits.

CREATE TABLE attempt (
  payment_hash    TEXT PRIMARY KEY,
  state           INTEGER NOT NULL,              -- 1 in flight, 2 paid, 3 failed
  behaviour       TEXT NOT NULL,                 -- pay, fail or hang
  amount_msat     INTEGER NOT NULL,
  fee_msat        INTEGER NOT NULL,
  fee_limit_msat  INTEGER NOT NULL,
  due_time_ms     INTEGER NOT NULL,              -- not decided before
  times_begun     INTEGER NOT NULL DEFAULT 1,    -- how often an attempt was begun: more than once only after a failure
  times_paid      INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
