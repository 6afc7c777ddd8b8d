-- The recovery log of two-phase commits: what a payment decided, before the invoice service is told to finish.
CREATE TABLE two_phase_decision (
  payment_id          TEXT PRIMARY KEY,            -- also of payments that are not known here: they are rolled back
  decision            INTEGER NOT NULL CHECK (decision IN (1, 2)),  -- 1 commit, 2 rollback
  decide_time_ms      INTEGER NOT NULL,
  finish_time_ms      INTEGER                          -- NULL: the invoice service may not have heard of it
) STRICT, WITHOUT ROWID;
