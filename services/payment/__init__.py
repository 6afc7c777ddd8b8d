"""Payments: accounts in a double-entry ledger, and the saga that pays an invoice exactly once.

`domain` decides and does nothing else, `store` holds the SQL, `engine` and `driver` run sagas, `node` is the way to Lightning, the
servicers (`payments`, `accounts`, `ledgers`) are thin.
"""
