-- The zap request (NIP-57) that an invoice was made for, the text whose SHA-256 is its description_hash; empty: it is no zap.
ALTER TABLE invoice ADD COLUMN zap_request TEXT NOT NULL DEFAULT '';
