"""Proofs of who somebody is: logins, NIP-42 challenges and NIP-98 authorizations, each good once."""
