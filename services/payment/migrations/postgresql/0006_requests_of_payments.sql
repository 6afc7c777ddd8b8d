-- A payment's own row remembers its request, and for as long as there is the row. Beside it stood one in storage_idempotency, with an
-- index of its own whose keys come in no order: a page more for every payment.

ALTER TABLE payment ADD COLUMN request_sha256 BYTEA;  -- of the request without its request_id; NULL: was forgotten before there was this column

-- A request_id that was forgotten could be used again; it is now the newest payment's.
UPDATE payment SET request_id = request_id || '/' || number WHERE EXISTS (
  SELECT 1 FROM payment AS newer
  WHERE newer.scope = payment.scope AND newer.request_id = payment.request_id AND newer.number > payment.number);

DROP INDEX payment_by_request;

UPDATE payment SET request_sha256 = (
  SELECT known.request_sha256 FROM storage_idempotency AS known
  WHERE known.scope = payment.scope AND known.method = '/nipmesh.payment.v1.PaymentService/PayInvoice'
    AND known.request_id = payment.request_id);
DELETE FROM storage_idempotency WHERE method = '/nipmesh.payment.v1.PaymentService/PayInvoice';

-- A request has one payment. What differs from row to row stands first, and is compared first.
CREATE UNIQUE INDEX payment_by_request ON payment (request_id, scope);

-- A foreign key is a query and a lock on the account's row for each new payment and transfer, all of them inside the one transaction
-- that everybody waits for. Who inserts them updates the accounts in the same transaction, and asserts that these are there; what is
-- left to a constraint is that no account goes away.
ALTER TABLE payment DROP CONSTRAINT payment_account_id_fkey;
ALTER TABLE transfer DROP CONSTRAINT transfer_debit_account_id_fkey1;
ALTER TABLE transfer DROP CONSTRAINT transfer_credit_account_id_fkey1;

CREATE FUNCTION account_is_kept() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'UPDATE'
    OR EXISTS (SELECT FROM transfer WHERE debit_account_id = OLD.account_id)
    OR EXISTS (SELECT FROM transfer WHERE credit_account_id = OLD.account_id)
    OR EXISTS (SELECT FROM payment WHERE account_id = OLD.account_id)
  THEN
    RAISE EXCEPTION 'an account with transfers or payments is kept' USING ERRCODE = 'foreign_key_violation';
  END IF;
  RETURN OLD;
END
$$;
CREATE TRIGGER account_is_kept BEFORE DELETE ON account FOR EACH ROW EXECUTE FUNCTION account_is_kept();
CREATE TRIGGER account_keeps_its_id BEFORE UPDATE OF account_id ON account
  FOR EACH ROW WHEN (NEW.account_id <> OLD.account_id) EXECUTE FUNCTION account_is_kept();
