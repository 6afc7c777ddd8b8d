"""The remote signer (NIP-46): apps sign with a user's key without having it.

`connecting` makes connections, `handler` answers requests, `worker` brings them from relays and the answers there, `store` has the SQL.
"""
