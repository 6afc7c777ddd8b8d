"""A test run that is told to end takes its meshes and servers along, as one that is interrupted does."""

from __future__ import annotations

import signal


def pytest_sessionstart() -> None:
    """SIGTERM raises KeyboardInterrupt: pytest tears its fixtures down and ends. Left as it is, it would end at once and leave them."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
