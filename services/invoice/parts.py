"""What the methods of the invoice service work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from services.invoice.accounts import Accounts
from services.invoice.deciding import Deciding
from services.invoice.expiry import ExpirySweeper
from services.invoice.issuing import Issuer
from services.invoice.two_phase import TwoPhase
from services.invoice.watching import Watcher
from services.invoice.worker import Worker
from services.invoice.zaps import Zaps
from services.storage.cache import Reads
from services.storage.database import Database
from services.storage.pages import PageTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Made once by each replica. `clock`: milliseconds since 1970."""

    database: Database
    reads: Reads
    accounts: Accounts
    zaps: Zaps
    issuer: Issuer
    page_tokens: PageTokens
    deciding: Deciding
    sweeper: ExpirySweeper
    watcher: Watcher
    worker: Worker
    two_phase: TwoPhase | None
    """None: two-phase commit is off."""
    clock: Callable[[], int]
