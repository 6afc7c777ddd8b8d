"""What `python -m services.payment verify` finds out about a database, from one snapshot and nothing but its rows.

`ledger` walks the chain and books every entry a second time (`books`), `payments` holds payments and sagas against the
ledger, `credits` does so with money from outside, `outbox` looks for holes; `report` collects. Pages of rows are read, so that memory
grows with accounts and open reservations only.
"""
