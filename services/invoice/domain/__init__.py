"""The rules of invoices, pure: no clock, no database, no wire."""
