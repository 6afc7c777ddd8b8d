-- Connections of apps to users' keys (NIP-46). The signer's own key of each lies in nostr_key, its owner "remote-signer:" and the id.
--
-- client, permissions, relays: JSON. secret_sha256: of the secret in the bunker:// URI. change_number: rises with every change that matters to
-- whoever listens for the connection, over all of them.
CREATE TABLE signer_connection (
    connection_id   TEXT PRIMARY KEY,
    owner           TEXT NOT NULL,
    key_id          TEXT NOT NULL,
    user_pubkey     TEXT NOT NULL CHECK (length(user_pubkey) = 64),
    signer_key_id   TEXT NOT NULL,
    signer_pubkey   TEXT NOT NULL UNIQUE CHECK (length(signer_pubkey) = 64),
    state           TEXT NOT NULL CHECK (state IN ('PENDING', 'CONNECTED', 'REVOKED', 'LOGGED_OUT')),
    client_pubkey   TEXT NOT NULL,
    secret_sha256   BLOB NOT NULL,
    display_name    TEXT NOT NULL,
    client          TEXT NOT NULL,
    permissions     TEXT NOT NULL,
    relays          TEXT NOT NULL,
    create_time_us  INTEGER NOT NULL,
    connect_time_us INTEGER,
    expire_time_us  INTEGER,
    change_number   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX signer_connection_by_owner ON signer_connection (owner, connection_id);
CREATE INDEX signer_connection_by_change ON signer_connection (change_number);

-- Requests of apps, each once for its id, and the answer that was recorded with its effect: an event of kind 24133, encrypted for the app.
--
-- message: the request, encrypted as it came (NIP-44, with the signer's key), until it is answered. relay: by which it came; empty: by a
-- call. lease_*: the replica that works on it, or has the answer to publish. will: the user's word, where it was asked for.
CREATE TABLE signer_request (
    approval_id    TEXT PRIMARY KEY,
    connection_id  TEXT NOT NULL,
    owner          TEXT NOT NULL,
    client_pubkey  TEXT NOT NULL,
    request_id     TEXT NOT NULL,
    method         TEXT NOT NULL,
    kind           INTEGER,
    outcome        TEXT NOT NULL CHECK (outcome IN ('RUNNING', 'ASKED', 'DONE', 'DENIED', 'FAILED', 'IGNORED')),
    will           TEXT NOT NULL CHECK (will IN ('', 'allow', 'deny')),
    message        TEXT,
    message_time_s INTEGER NOT NULL,
    relay          TEXT NOT NULL,
    answer         TEXT,
    unpublished    INTEGER NOT NULL CHECK (unpublished IN (0, 1)),
    lease_owner    TEXT NOT NULL,
    lease_until_us INTEGER NOT NULL,
    attempts       INTEGER NOT NULL,
    create_time_us INTEGER NOT NULL,
    update_time_us INTEGER NOT NULL,
    UNIQUE (connection_id, client_pubkey, request_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX signer_request_by_owner ON signer_request (owner, approval_id);
CREATE INDEX signer_request_by_connection ON signer_request (connection_id, approval_id);
CREATE INDEX signer_request_asked ON signer_request (owner, approval_id) WHERE outcome = 'ASKED';
CREATE INDEX signer_request_to_do ON signer_request (lease_until_us) WHERE outcome IN ('RUNNING', 'ASKED') OR unpublished = 1;
CREATE INDEX signer_request_by_time ON signer_request (create_time_us);

-- Ids of events that were taken, on whatever replica. A row goes when the window of time has long refused its event.
CREATE TABLE signer_seen (
    event_id       TEXT PRIMARY KEY,
    forget_time_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX signer_seen_by_time ON signer_seen (forget_time_us);
