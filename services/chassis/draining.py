"""The drain: one event that says the replica shuts down. Server streams end at once, drivers hand back what they hold."""

from __future__ import annotations

import asyncio

from services.chassis.errors import Reason, ServiceError


class Draining:
    """Set once, at SIGTERM. `draining.is_set()`, `await draining.wait()`, `draining.check()`."""

    def __init__(self) -> None:
        """Not draining."""
        self._event = asyncio.Event()

    def set(self) -> None:
        """Begin the drain; again: nothing."""
        self._event.set()

    def is_set(self) -> bool:
        """Whether the replica shuts down."""
        return self._event.is_set()

    async def wait(self) -> None:
        """Return when the replica shuts down."""
        await self._event.wait()

    def check(self) -> None:
        """Raise SERVICE_DRAINING when the replica shuts down: the client repeats or resumes elsewhere."""
        if self._event.is_set():
            raise ServiceError(Reason.SERVICE_DRAINING, "the replica is shutting down; resume after the last sequence")
