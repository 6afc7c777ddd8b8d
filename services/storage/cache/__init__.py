"""An optional cache in front of reads by id, in a Redis or Valkey server: never stale, never trusted, off unless NIPMESH_CACHE_URL is set.

    async with open_reads(app.settings, database, app.registry, FILE_NAME) as reads:
        entry = await reads.read(INVOICE, invoice_id, lambda connection: Entry(owner=..., message=...))

**What lies in the cache** are facts, sealed: "when event 4711 was the newest one, the invoice with this id was this". Such a sentence is
true for ever, whatever happens to the server, so nobody has to delete it in time: writers never speak to the cache at all, and one that
is killed between its commit and anything else leaves nothing undone.

**What is asked on each read** is the database's list of events, which every change of a cached thing extends in its own transaction: has
one about this id come after the fact's? `History` keeps what was read of that list, so only what is new is fetched, by one small query
that all waiting readers share; on SQLite a look at the file's version often shows that there is nothing new. The query begins after the
read began, so it sees all that was acknowledged before. That is the whole argument: it holds with any interleaving of readers and
writers, and for a server that is slow, empty, gone, or back with old contents.

**A fact names its event by a digest**, not by its number alone. So facts out of a future that a restored backup, or a standby that was
promoted too early, never saw are not believed, nor those of a copy of the database that shares the server.

**Who holds the server learns and changes nothing**: entries are sealed with a key of the database, bound to their names. What it sees is
which ids are read how often, and how long the answers are. Who may see an answer is decided after the cache, on every read.

It pays on PostgreSQL under load: what many callers want is asked together, of the cache and of the database, so a busy replica serves
about three times as many reads (`python -m benchmarks.services.reads`) and the server reads hardly any rows. A lone caller waits longer
than without, for two answers instead of one. On SQLite, where a read costs less than any question to a server, it never pays.

Only what writes an event with each visible change may be cached: invoices and payments. Accounts have no such events.
"""

from services.storage.cache.opening import open_reads
from services.storage.cache.reading import Direct, Entry, EntryKind, Reads

__all__ = ["Direct", "Entry", "EntryKind", "Reads", "open_reads"]
