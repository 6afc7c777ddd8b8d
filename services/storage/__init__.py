"""Durable state of a service, on SQLite or PostgreSQL: group commit, migrations, idempotency, events with watch, page tokens, ids.

    database = await Database.open(place_of(settings, "nip.db"), migrations=Path(__file__).parent / "migrations")
    result = await database.write(lambda connection: ...)     # durable when it returns; the lambda runs in the writer's thread
    result = await database.read(lambda connection: ...)      # one snapshot, read-only
    key = RequestKey.of(request)                              # then run_once / begin + complete inside database.write
    sequence = append_event(connection, kind=..., subject=..., payload=...)
    async for item in watch(database, draining=app.draining, resume_after_sequence=...): Event | Heartbeat
    page = tokens.page(request); token = tokens.next(request, (last_id,))
    app.spawn(run_sweeper(database), name="sweeper")

Tables of this package begin with `storage_`; a service's own are made by its numbered SQL files.
"""

from services.storage.changes import Changes
from services.storage.database import Database, DatabaseClosedError
from services.storage.events import Event, Heartbeat, append_event, events_after, watch
from services.storage.idempotency import (
    Fresh,
    InProgress,
    Outcome,
    Replay,
    RequestKey,
    abandon,
    begin,
    complete,
    find,
    in_progress,
    request_sha256,
    run_once,
    wait_for_response,
)
from services.storage.ids import new_id
from services.storage.migrations import MigrationError
from services.storage.pages import PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX, Cursor, Page, PageTokens
from services.storage.places import Place, PostgresPlace, place_of
from services.storage.sequence import newest_sequence
from services.storage.sweeper import run_sweeper, sweep
from services.storage.writing import ONE_BY_ONE, BatchKind, BatchWrite

__all__ = [
    "ONE_BY_ONE",
    "PAGE_SIZE_DEFAULT",
    "PAGE_SIZE_MAX",
    "BatchKind",
    "BatchWrite",
    "Changes",
    "Cursor",
    "Database",
    "DatabaseClosedError",
    "Event",
    "Fresh",
    "Heartbeat",
    "InProgress",
    "MigrationError",
    "Outcome",
    "Page",
    "PageTokens",
    "Place",
    "PostgresPlace",
    "Replay",
    "RequestKey",
    "abandon",
    "append_event",
    "begin",
    "complete",
    "events_after",
    "find",
    "in_progress",
    "new_id",
    "newest_sequence",
    "place_of",
    "request_sha256",
    "run_once",
    "run_sweeper",
    "sweep",
    "wait_for_response",
    "watch",
]
