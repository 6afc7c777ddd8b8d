-- A payment's own row remembers its request, and for as long as there is the row. Beside it stood one in storage_idempotency, with an
-- index of its own whose keys come in no order: a page more for every payment.

ALTER TABLE payment ADD COLUMN request_sha256 BLOB;  -- of the request without its request_id; NULL: was forgotten before there was this column

DROP INDEX payment_by_request;

-- A request_id that was forgotten could be used again; it is now the newest payment's.
UPDATE payment SET request_id = request_id || '/' || number WHERE EXISTS (
  SELECT 1 FROM payment AS newer
  WHERE newer.scope = payment.scope AND newer.request_id = payment.request_id AND newer.number > payment.number);

UPDATE payment SET request_sha256 = (
  SELECT known.request_sha256 FROM storage_idempotency AS known
  WHERE known.scope = payment.scope AND known.method = '/nipmesh.payment.v1.PaymentService/PayInvoice'
    AND known.request_id = payment.request_id);
DELETE FROM storage_idempotency WHERE method = '/nipmesh.payment.v1.PaymentService/PayInvoice';

-- A request has one payment. What differs from row to row stands first, and is compared first.
CREATE UNIQUE INDEX payment_by_request ON payment (request_id, scope);
