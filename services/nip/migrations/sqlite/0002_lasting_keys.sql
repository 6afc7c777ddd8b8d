-- What must outlive a rotation of the master key, sealed with the current one. NULL: never rotated, it follows from the master key.
ALTER TABLE keystore ADD COLUMN sealed_lasting BLOB;
