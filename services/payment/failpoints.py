"""Dying on purpose, for tests: `NIPMESH_FAILPOINT=<name>[:n]` ends the process, without any clean-up, the n-th time it gets there.

Each step has two points: its name, before the step is done, and its name with `.done`, after it and before that is written down:
reserve_balance (only `.done`: after the commit), lock_invoice, cancel_at_node, post_transfer, commit_invoice, process_payment,
track_payment, release_invoice, sign_receipt, and the commits dispatch, succeed, settle, fail, save_receipt, remember, park.
"""

from __future__ import annotations

import os
import threading
from collections import Counter

VARIABLE = "NIPMESH_FAILPOINT"
EXIT_CODE = 137
"""What a shell shows for a process that was killed by SIGKILL."""

_lock = threading.Lock()
_reached: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """Die here when the environment says so."""
    wanted = os.environ.get(VARIABLE, "")
    if not wanted:
        return
    wanted_name, _, number = wanted.partition(":")
    if wanted_name != name:
        return
    with _lock:
        _reached[name] += 1
        if _reached[name] >= int(number or 1):
            os._exit(EXIT_CODE)
