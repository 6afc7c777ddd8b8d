"""Zaps (NIP-57): requests that are signed and checked, and receipts that follow from settled invoices."""
