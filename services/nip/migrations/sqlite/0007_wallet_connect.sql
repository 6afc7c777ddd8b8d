-- Connections of apps to wallets (NIP-47). The app's secret key is not kept; the wallet's own key of the connection is a held key of the
-- owner "wallet:<connection_id>".
CREATE TABLE wallet_connection (
    connection_id    TEXT NOT NULL PRIMARY KEY,        -- rises with time
    owner_pubkey     TEXT NOT NULL,
    account_id       TEXT NOT NULL,
    display_name     TEXT NOT NULL,
    key_id           TEXT NOT NULL,
    service_pubkey   TEXT NOT NULL UNIQUE,
    client_pubkey    TEXT NOT NULL,
    relays           TEXT NOT NULL,                    -- separated by spaces
    methods          TEXT NOT NULL,                    -- separated by spaces, as NIP-47 names them
    topics           TEXT NOT NULL,                    -- the notifications, the same
    budget_msat      INTEGER,                          -- NULL: no limit
    renewal          INTEGER NOT NULL,
    payment_msat_max INTEGER,                          -- NULL: no limit
    expire_time_ms   INTEGER,                          -- NULL: never
    period_start_ms  INTEGER NOT NULL,                 -- of what follows
    spent_msat       INTEGER NOT NULL CHECK (spent_msat >= 0),
    pending_msat     INTEGER NOT NULL CHECK (pending_msat >= 0),
    revision         INTEGER NOT NULL,                 -- counts changes of the terms
    create_time_ms   INTEGER NOT NULL,
    update_time_ms   INTEGER NOT NULL,
    revoke_time_ms   INTEGER,                          -- NULL: not revoked
    use_time_ms      INTEGER                           -- NULL: never used; of its newest request
) STRICT;
CREATE INDEX wallet_connection_by_owner ON wallet_connection (owner_pubkey, connection_id);
CREATE INDEX wallet_connection_by_account ON wallet_connection (account_id);

-- What is to be done for connections and published to their relays: requests of apps, notifications, info events. A row is worked on by
-- whoever set next_run_ms ahead last; fence counts the takers.
CREATE TABLE wallet_task (
    task_id        TEXT NOT NULL PRIMARY KEY,          -- of a request: the id of its event
    connection_id  TEXT NOT NULL,
    kind           INTEGER NOT NULL,                   -- 1 request, 2 notification, 3 info
    state          INTEGER NOT NULL,                   -- 1 to be worked on, 2 to be published, 3 done
    stranger       INTEGER NOT NULL,                   -- 1: a request that the connection's app did not sign
    input          TEXT NOT NULL,                      -- of a request: its event
    output         TEXT NOT NULL,                      -- the signed events, a JSON list
    method         TEXT NOT NULL,
    code           TEXT NOT NULL,                      -- of the answer; empty for a success
    fence          INTEGER NOT NULL,
    attempt        INTEGER NOT NULL,
    next_run_ms    INTEGER NOT NULL,
    taken          INTEGER NOT NULL,                   -- 1 while it is worked on; 2: and something happened meanwhile
    create_time_ms INTEGER NOT NULL,
    answer_time_ms INTEGER                             -- NULL: not answered yet
) STRICT;
CREATE INDEX wallet_task_due ON wallet_task (next_run_ms) WHERE state < 3;
CREATE INDEX wallet_task_by_connection ON wallet_task (connection_id, stranger, create_time_ms);
CREATE INDEX wallet_task_by_time ON wallet_task (create_time_ms) WHERE state = 3;

-- What requests spend: reserved before the payment is begun, until it is final.
CREATE TABLE wallet_spend (
    event_id        TEXT NOT NULL PRIMARY KEY,         -- of the request
    connection_id   TEXT NOT NULL,
    owner_pubkey    TEXT NOT NULL,
    request_id      TEXT NOT NULL UNIQUE,              -- of the payment, made from the event's id
    payment_hash    TEXT NOT NULL,
    amount_msat     INTEGER NOT NULL CHECK (amount_msat > 0),
    fee_limit_msat  INTEGER NOT NULL CHECK (fee_limit_msat >= 0),
    state           INTEGER NOT NULL,                  -- 1 pending, 2 spent, 3 freed
    spent_msat      INTEGER NOT NULL CHECK (spent_msat >= 0),
    metadata        TEXT NOT NULL,                     -- JSON, or empty
    reserve_time_ms INTEGER NOT NULL,
    final_time_ms   INTEGER
) STRICT;
CREATE INDEX wallet_spend_by_connection ON wallet_spend (connection_id, reserve_time_ms);
CREATE INDEX wallet_spend_by_hash ON wallet_spend (payment_hash);
