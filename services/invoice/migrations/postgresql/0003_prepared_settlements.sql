-- Settlements that a two-phase commit made and whose event is still to be written; the row comes with the settlement itself.
CREATE TABLE invoice_untold (
    payment_id TEXT NOT NULL PRIMARY KEY,
    invoice_id TEXT NOT NULL REFERENCES invoice (invoice_id)
);
