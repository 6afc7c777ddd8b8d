"""A payment database in memory, as the service has it when it serves."""

from __future__ import annotations

import apsw

from services.payment.service import MIGRATIONS
from services.payment.store.chaining import chain_what_is_not
from services.storage.migrations import SQLITE, STORAGE_MIGRATIONS, load_migrations, migrate
from services.storage.sqlite.migrating import FileMigrator


def open_payment_database(path: str = ":memory:") -> apsw.Connection:
    """All migrations and the chain; nobody's accounts but the house's."""
    connection = apsw.Connection(path)
    migrate(FileMigrator(connection), "storage", load_migrations(STORAGE_MIGRATIONS / SQLITE))
    migrate(FileMigrator(connection), "service", load_migrations(MIGRATIONS / SQLITE))
    with connection:
        chain_what_is_not(connection)
    return connection
