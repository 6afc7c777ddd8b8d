"""A real Nostr relay (nostr-sdk's LocalRelay) as a process of its own: it can be frozen, killed with -9, and started again on its port."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

PR_SET_PDEATHSIG = 1
AUTH_MODES = ("", "WRITE", "READ", "BOTH")


class NostrRelay:
    """A relay on 127.0.0.1. What was stored is gone after a kill."""

    def __init__(self, auth: str = "") -> None:
        """`auth`: what NIP-42 is asked for (see AUTH_MODES)."""
        from support.mesh import free_port  # what runs it as a program has no such package

        self._auth = auth
        self._process: subprocess.Popen[str] | None = None
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def start(self) -> None:
        assert self._process is None
        command = (sys.executable, __file__, str(self.port), self._auth)
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def freeze(self) -> None:
        """It keeps its connections and answers nothing."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)  # until its last thread is

    def thaw(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)


@contextlib.contextmanager
def running_relay(auth: str = "") -> Iterator[NostrRelay]:
    """A new relay, gone afterwards."""
    relay = NostrRelay(auth)
    try:
        relay.start()
        yield relay
    finally:
        relay.kill()


async def _serve(port: int, auth: str) -> None:
    """The process: no limit of rates, so that a test meets none but its own."""
    import nostr_sdk

    builder: Any = nostr_sdk.LocalRelayBuilder().addr("127.0.0.1").port(port)
    builder = builder.rate_limit(nostr_sdk.RateLimit(max_reqs=1_000_000, notes_per_minute=100_000_000))
    if auth:
        mode = nostr_sdk.LocalRelayBuilderNip42Mode[auth]
        builder = builder.nip42(nostr_sdk.LocalRelayBuilderNip42(mode=mode))
    relay = builder.build()
    await relay.run()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # ends with the test, however that ends
    asyncio.run(_serve(int(sys.argv[1]), sys.argv[2]))
