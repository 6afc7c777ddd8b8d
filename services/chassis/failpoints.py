"""Dying on purpose, for tests: `NIPMESH_FAILPOINT=<name>[:n]` ends the process, without any clean-up, the n-th time it gets there.

`NIPMESH_FAILPOINT=@<path>` reads that order from a file each time, so that a running process can be given one; `<name>[:n] <pid>` kills
another process, with SIGKILL, instead of this one. An order in a file is carried out once, by whoever gets there first.

Each step of a service has two points: its name, before the step is done, and its name with `.done`, after it and before that is
written down.

Payment: reserve_balance (only `.done`: after the commit), lock_invoice, post_transfer, hold_for_payee, commit_invoice, get_hold,
process_payment, track_payment, release_invoice, sign_receipt, the commits dispatch, succeed, post_held, settle, fail, save_receipt,
remember, park, and beside payments hold_credit, post_credit, void_credit, resume_payment, get_decision, refund and resolve.

Invoice: add_invoice, lock, lock_at_node, prepare, commit, commit_prepared, release, rollback_prepared, decide, arrive, hold_credit,
settle_at_node, post_credit, cancel_at_node, void_credit, close_at_node.

NIP: rotate_key.file_written, rotate_key.sealed (in the transaction), rotate_key.committed, rotate_key.replaced; of zaps make_receipt (both
points in the transaction) and publish_receipt; of wallets only `.done`: wallet_accept, wallet_reserve, wallet_pay, wallet_answer,
wallet_publish; of the remote signer nip46.taken, nip46.recorded, nip46.published, each after it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

VARIABLE: Final = "NIPMESH_FAILPOINT"
_WANTED: Final = os.environ.get(VARIABLE, "")
"""What the process was started with: a service comes by here dozens of times in each call."""
EXIT_CODE: Final = 137
"""What a shell shows for a process that was killed by SIGKILL."""

_lock = threading.Lock()
_reached: Counter[str] = Counter()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """Where to die, the how-manieth time, and who (None: this process). `file` held the order."""

    name: str
    number: int
    pid: int | None = None
    file: Path | None = None


def failpoint(name: str) -> None:
    """Die here, or kill whom the order names, when the environment says so."""
    if not _WANTED:
        return
    order = _order_in(Path(_WANTED[1:])) if _WANTED.startswith("@") else _order(_WANTED)
    if order is None or order.name != name:
        return
    with _lock:
        _reached[name] += 1
        if _reached[name] >= order.number:
            _carry_out(order)


def _order(text: str, file: Path | None = None) -> _Order:
    """An order as it is written."""
    where, _, pid = text.partition(" ")
    name, _, number = where.partition(":")
    return _Order(name=name, number=int(number or 1), pid=int(pid) if pid else None, file=file)


def _order_in(file: Path) -> _Order | None:
    """The order in a file; None when there is none (any more)."""
    try:
        return _order(file.read_text(), file)
    except FileNotFoundError:
        return None


def _carry_out(order: _Order) -> None:
    """Kill. Of several processes that read one file, only the one that removes it does."""
    if order.file is not None:
        try:
            order.file.unlink()
        except FileNotFoundError:
            return
    _reached.clear()
    if order.pid is None:
        os._exit(EXIT_CODE)
    os.kill(order.pid, signal.SIGKILL)
