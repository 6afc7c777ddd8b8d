"""Pure rules of accounts, transfers, payments and their saga. Nothing here does I/O or reads a clock."""
