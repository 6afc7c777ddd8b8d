"""`python -m generator.outputs.compose --manifest FILE --state FOLDER --ready SOCKET`: the agent's program."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from pathlib import Path

from generator.analysis import check_manifest
from generator.outputs.compose.agent import Agent, AgentError
from generator.outputs.compose.layout import ContainerPaths
from generator.outputs.local.events import Journal
from generator.resources import ResourceError

READY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
REQUEST_S_MAX = 5


def main() -> None:
    """Fill the volumes, say that it is ready, and keep them fresh until SIGTERM; exit code 1 when it cannot."""
    parser = argparse.ArgumentParser(prog="python -m generator.outputs.compose", description=__doc__)
    parser.add_argument("--manifest", type=Path, required=True, help="the manifest, in its folder")
    parser.add_argument("--state", type=Path, required=True, help="what only this program may read, durable")
    parser.add_argument("--ready", type=Path, required=True, help="the Unix socket that answers at /ready")
    words = parser.parse_args()
    try:
        asyncio.run(_run(words.manifest, words.state, words.ready))
    except (AgentError, ResourceError, OSError, ValueError) as error:
        sys.exit(str(error))


async def _run(manifest: Path, state: Path, ready: Path) -> None:
    agent = _agent(manifest, state)
    await agent.look()
    agent.fill()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with await asyncio.start_unix_server(_answer, ready):
        keeping = asyncio.create_task(agent.keep())
        ending = asyncio.create_task(ended.wait())
        await asyncio.wait({keeping, ending}, return_when=asyncio.FIRST_COMPLETED)
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping


def _agent(manifest: Path, state: Path) -> Agent:
    analysis = check_manifest(manifest)
    if analysis.mesh is None:
        raise AgentError("\n".join(map(str, analysis.findings)))
    paths = ContainerPaths(root=state)
    for folder in (paths.authorities, state / "secrets"):
        folder.mkdir(mode=0o700, exist_ok=True)
    journal = Journal()
    journal.listen(lambda happening: print(happening.line(), flush=True))
    return Agent(mesh=analysis.mesh, paths=paths, manifest_directory=manifest.parent, journal=journal)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Whoever asks is told that the volumes are filled: before, nobody listens."""
    try:
        async with asyncio.timeout(REQUEST_S_MAX):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(READY)
            await writer.drain()
    except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass  # a probe that goes away comes again
    finally:
        writer.close()


if __name__ == "__main__":
    main()
