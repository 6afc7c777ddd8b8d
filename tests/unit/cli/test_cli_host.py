"""`nipmesh host` where there is nothing to talk to: it says so, waits no longer than it was told, and stops nobody from stopping."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from generator.cli.main import main
from generator.outputs.nats import Topology, topology
from support.folders import short_folder
from support.meshes import repository_mesh

BODY = {
    "ready": b"LIVE",
    "stats": json.dumps({"stats": [{"name": "http.inbound.downstream_rq_active", "value": 0}]}).encode(),
}


def run(*arguments: str, expect: int = 0) -> Result:
    result = CliRunner().invoke(main, ["host", *arguments], prog_name="nipmesh")
    assert result.exit_code == expect, (result.output, result.exception)
    return result


class Envoy:
    """An admin interface that answers and remembers what it was asked."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.asked: list[str] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method, path, _ = (await reader.readuntil(b"\r\n\r\n")).decode().split(" ", 2)
        self.asked.append(f"{method} {path.partition('?')[0]}")
        body = BODY.get(path.strip("/").partition("?")[0], b"OK")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()


@pytest.fixture
async def envoy() -> AsyncIterator[Envoy]:
    with short_folder() as folder:
        envoy = Envoy(folder / "admin.sock")
        async with await asyncio.start_unix_server(envoy.answer, envoy.socket):
            yield envoy


async def test_an_envoy_is_waited_for_drained_and_opened(envoy: Envoy) -> None:
    for words, asked in (
        (("ready",), {"GET /ready"}),
        (("drain",), {"POST /healthcheck/fail", "GET /stats"}),
        (("drain", "--listeners"), {"POST /healthcheck/fail", "POST /drain_listeners", "GET /stats"}),
        (("open",), {"POST /healthcheck/ok"}),
    ):
        envoy.asked.clear()
        result = await asyncio.to_thread(run, *words, str(envoy.socket))
        assert set(envoy.asked) == asked
        assert result.output == ""


def test_without_an_envoy_nothing_stops_nobody_from_stopping(tmp_path: Path) -> None:
    socket = str(tmp_path / "admin.sock")
    assert "no Envoy to drain" in run("drain", socket).stderr
    assert "no Envoy to open" in run("open", socket).stderr
    assert "is not ready after 0.2 s" in run("ready", "--seconds", "0.2", socket, expect=1).stderr


def test_streams_survive_their_file() -> None:
    wanted = topology(repository_mesh())
    assert Topology.from_json(wanted.to_json()) == wanted


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"inboxes": []}', '{"inboxes": {}, "other": 1}'])
def test_what_describes_no_streams_is_said(tmp_path: Path, content: str) -> None:
    (tmp_path / "streams.json").write_text(content)
    words = ("--url", "tls://127.0.0.1:1", "--authorities", str(tmp_path / "ca.crt"), "--keys", str(tmp_path))
    refused = run("streams", str(tmp_path / "streams.json"), *words, expect=1)
    assert refused.stderr
    assert "Traceback" not in refused.output


def test_a_server_of_events_that_does_not_answer_is_said_with_the_last_reason(tmp_path: Path) -> None:
    (tmp_path / "streams.json").write_bytes(topology(repository_mesh()).to_json())
    words = ("--url", "tls://127.0.0.1:1", "--authorities", str(tmp_path / "ca.crt"), "--keys", str(tmp_path))
    refused = run("streams", str(tmp_path / "streams.json"), *words, "--seconds", "0.5", expect=1)
    assert f"is not ready: [Errno 2] No such file or directory: '{tmp_path}/admin.nk'" in refused.stderr
