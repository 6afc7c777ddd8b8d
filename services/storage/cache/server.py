"""The Redis or Valkey server: a few milliseconds at most, or it is left alone for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from services.chassis.errors import StartError
from services.chassis.logs import get_logger
from services.chassis.secret import SecretBytes
from services.storage.cache.gathering import Gathering

CALL_S_MAX: Final = 0.02
"""An answer that takes longer comes too late: the database has it in less."""
CONNECT_S_MAX: Final = 2.0
"""Connecting may take longer, TLS and all: nobody waits for it."""
PAUSE_S: Final = 0.25
"""A server that failed is left alone this long; each time twice as long."""
PAUSE_S_MAX: Final = 8.0
"""Longest such pause. So a server that is always too slow costs one read in 8 s CALL_S_MAX."""
TRUSTED_S: Final = 10.0
"""A server that worked this long since it last failed is forgiven: the next pause is short again."""
KEPT_S: Final = 600
"""Entries live 10 minutes in the server: what nobody read for so long is not worth its memory. Correctness does not depend on it."""
FILLS_WAITING_MAX: Final = 512
"""Entries that wait to be sent; more are not kept."""
_ATTEMPT_MAX: Final = 16

_log = get_logger("storage")


@dataclass(frozen=True, slots=True)
class Found:
    """What the server said: a value, None when it has none; not `reached`: nothing."""

    value: bytes | None
    reached: bool


_UNREACHED: Final = Found(None, reached=False)


class CacheServer:
    """One server, over few connections: waiting reads are asked together, as are waiting fills."""

    def __init__(self, url: SecretBytes, call_s_max: float = CALL_S_MAX) -> None:
        """Needs a running event loop; connects in the background. Raises StartError when the client library is missing."""
        self._client = _client(url)
        self._call_s_max = call_s_max
        self._reads = Gathering(self._read, "cache reads")
        self._fills: dict[str, bytes] = {}
        self._filling: asyncio.Task[None] | None = None
        self._working_since_s: float | None = None
        self._lost = asyncio.Event()
        self._lost.set()
        self._keeper = asyncio.create_task(self._keep_connected(), name="cache connection")

    @property
    def working(self) -> bool:
        """Whether it is asked at all now."""
        return not self._lost.is_set()

    async def get(self, name: str) -> Found:
        """The value under a name. Raises nothing, and waits for at most two calls' time."""
        return await self._reads.answer(name) if self.working else _UNREACHED

    def put(self, name: str, value: bytes) -> bool:
        """Have a value kept, some time soon, if possible; False when it certainly is not."""
        if not self.working or len(self._fills) >= FILLS_WAITING_MAX:
            return False
        self._fills[name] = value
        if self._filling is None or self._filling.done():
            self._filling = asyncio.create_task(self._fill(), name="cache fills")
        return True

    async def close(self) -> None:
        """End all tasks, close all connections. Nothing is asked or kept any more."""
        tasks = [task for task in (self._keeper, self._filling) if task is not None]
        for task in tasks:
            task.cancel()
        self._lost.set()
        await asyncio.wait(tasks)
        await self._reads.close()
        await self._client.aclose()

    async def _read(self, names: Sequence[str]) -> Sequence[Found]:
        if not self.working:
            return [_UNREACHED] * len(names)
        values = await self._call(self._client.mget(names))
        return [_UNREACHED] * len(names) if values is None else [Found(value, reached=True) for value in values]

    async def _fill(self) -> None:
        while self._fills:
            batch, self._fills = self._fills, {}
            pipeline = self._client.pipeline(transaction=False)
            for name, value in batch.items():
                pipeline.set(name, value, ex=KEPT_S)
            if await self._call(pipeline.execute()) is None:
                self._fills.clear()

    async def _call(self, work: Any, s_max: float | None = None) -> Any:
        """The answer; None, and the server is left alone, when it fails or takes too long."""
        from redis.exceptions import RedisError

        try:
            async with asyncio.timeout(self._call_s_max if s_max is None else s_max):
                return await work
        except (RedisError, TimeoutError, OSError) as error:
            if self.working:
                _log.warning("cache left alone", error=type(error).__name__)
            self._lost.set()
            return None

    async def _keep_connected(self) -> None:
        """Once it is lost, wait, and try whether it answers in time again."""
        attempt = 0
        while True:
            await self._lost.wait()
            now_s = asyncio.get_running_loop().time()
            if self._working_since_s is not None and now_s - self._working_since_s > TRUSTED_S:
                attempt = 0
            if attempt:
                await asyncio.sleep(min(PAUSE_S * 2 ** (attempt - 1), PAUSE_S_MAX))
            attempt = min(attempt + 1, _ATTEMPT_MAX)
            self._working_since_s = None
            if await self._call(self._client.ping(), CONNECT_S_MAX) and await self._call(self._client.ping()):
                self._working_since_s = asyncio.get_running_loop().time()
                self._lost.clear()
                _log.info("cache connected")


def _client(url: SecretBytes) -> Any:
    """The client: it tries nothing twice, all time limits are ours."""
    try:
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.maint_notifications import MaintNotificationsConfig
    except ImportError as error:
        raise StartError("NIPMESH_CACHE_URL needs the package redis: pip install 'nipmesh[redis]'") from error
    try:
        return Redis.from_url(
            url.reveal().decode(),
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=CONNECT_S_MAX,
            socket_timeout=CONNECT_S_MAX,
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
        )
    except (ValueError, TypeError):
        raise StartError("NIPMESH_CACHE_URL is no URL of a Redis server") from None  # its text may hold the URL
