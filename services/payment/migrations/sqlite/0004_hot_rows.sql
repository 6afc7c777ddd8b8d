-- A payment's beginning touches fewer pages: each index whose keys come in no order costs one for every new row.

-- RESERVED, IN_FLIGHT, SUCCEEDED, REFUNDED are found by payment_once; this index is left with the FAILED ones.
DROP INDEX payment_by_hash;
CREATE INDEX payment_failed_by_hash ON payment (payment_hash, number) WHERE state = 5;
