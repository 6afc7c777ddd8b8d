"""The benchmark of the services measures what it says; what cannot be had is None, with the reason."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from benchmarks.figures import Load, median_ratio, per_second, table
from benchmarks.services import ciphers, lnbits, measure, postgresql, reserves
from benchmarks.services.http import HttpClient, HttpError
from benchmarks.services.processes import Meter
from benchmarks.services.reserves import PROCESSES, running_writers
from services.payment.store.ledger import sums
from services.storage.sql import value_of
from services.storage.sqlite.connection import connect
from support.meshes import REPOSITORY


async def test_a_load_makes_so_many_calls_with_so_many_at_once() -> None:
    running, most, made = 0, 0, 0

    async def call() -> None:
        nonlocal running, most, made
        running, made = running + 1, made + 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    assert await per_second(Load(call=call, calls=50), callers=8) > 0
    assert (made, most) == (50, 8)


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    assert median_ratio([10, 1, 30], [20, 2, 10]) == 0.5, "the slow second round is slow for both"


def test_figures_without_a_peer_are_none_and_a_dash() -> None:
    figures = measure._of_rates({"echo": [100.0], "nest": [50.0], "create_invoice": [40.0], "pay_invoice": [20.0]})
    assert figures["create_to_echo"] == 0.4
    assert figures["pay_to_nest"] == 0.4
    assert figures["lnbits_create_per_s"] is None
    assert figures["pay_to_lnbits"] is None
    printed = table({"services": figures}).splitlines()
    assert "| services | echo_per_s | 100.00 |" in printed
    assert "| services | lnbits_pay_per_s | - |" in printed


async def test_whoever_is_next_waits_until_a_peer_has_ended_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    used_s = iter((0.0, 0.2, 0.2, 0.4, 0.6, 0.6, 0.6))

    class Peer:
        def read(self) -> dict[str, float]:
            return {"lnbits": next(used_s)}

    monkeypatch.setattr(measure, "QUIET_LOOK_S", 0.001)
    await measure._at_rest(Peer())  # type: ignore[arg-type]  # what it reads of a meter
    assert list(used_s) == [0.6], "worked twice, then rested"


async def test_a_peer_that_never_rests_is_no_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Peer:
        def read(self) -> dict[str, float]:
            return {"lnbits": time.monotonic()}

    monkeypatch.setattr(measure, "QUIET_S_MAX", 0.05)
    monkeypatch.setattr(measure, "QUIET_LOOK_S", 0.01)
    with pytest.raises(TimeoutError):
        await measure._at_rest(Peer())  # type: ignore[arg-type]  # what it reads of a meter


def test_the_meter_counts_processor_time_per_call() -> None:
    meter = Meter(pids={"client": (os.getpid(),)})
    before = meter.read()
    sum(range(1_000_000))
    meter.add("echo", before, calls=2)
    figures = meter.figures(by_part=True)
    assert figures["echo_cpu_ms"] == figures["echo_cpu_ms_of_client"] > 0


@asynccontextmanager
async def http_server(*, keeps_open: bool) -> AsyncIterator[tuple[HttpClient, list[bytes]]]:
    """Answers each POST with its own body, anything else with 400; the first lines of what it got, and how often it was connected."""
    heads: list[bytes] = []

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        heads.append(head.split(b"\r\n")[0])
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:-2])
        body = await reader.readexactly(int(fields["Content-Length"]))
        status = b"201 Created" if head.startswith(b"POST") else b"400 Bad Request"
        writer.write(b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(b"connected")
        with suppress(asyncio.IncompleteReadError):  # the client closed the connection
            while True:
                await one(reader, writer)
                if not keeps_open:
                    break
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    client = HttpClient(host="127.0.0.1", port=server.sockets[0].getsockname()[1])
    async with server:
        yield client, heads
        await client.close()


async def test_a_connection_is_used_again() -> None:
    async with http_server(keeps_open=True) as (client, heads):
        assert await client.call("POST", "/one", {"a": 1}) == {"a": 1}
        assert await client.call("POST", "/two", {"a": 2}) == {"a": 2}
    assert heads == [b"connected", b"POST /one HTTP/1.1", b"POST /two HTTP/1.1"]


async def test_a_connection_that_the_server_closed_is_not() -> None:
    async with http_server(keeps_open=False) as (client, heads):
        await client.call("POST", "/one", {})
        reader, _ = client._idle[0]
        while not reader.at_eof():
            await asyncio.sleep(0.01)
        await client.call("POST", "/two", {})
    assert heads.count(b"connected") == 2


async def test_an_error_of_the_server_is_said() -> None:
    async with http_server(keeps_open=True) as (client, _):
        with pytest.raises(HttpError, match=r"PUT /x: 400 \{\"why\": \"no\"\}"):
            await client.call("PUT", "/x", {"why": "no"})


def test_two_processes_reserve_in_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reserves, "WARM_UP_RESERVES", 40)
    monkeypatch.setattr(reserves, "RESERVES_MAX", 60)
    monkeypatch.setattr(reserves, "ROUND_S", 60.0)
    path = tmp_path / "payment.sqlite3"
    with running_writers("sqlite", str(path)) as writers:
        writers.warm_up()
        writers.round()
    (measured,) = writers.rounds
    assert measured.per_second > 0 < measured.p99_ms
    assert measured.writers_cpu_us > 0 == measured.server_cpu_us
    connection = connect(path, read_only=True)
    written = PROCESSES * (40 + 60)
    for query in (
        "SELECT count(*) FROM payment WHERE state = 2",
        "SELECT count(*) FROM transfer WHERE kind = 2",
        "SELECT count(*) FROM saga",
        "SELECT count(*) FROM payment WHERE length(request_sha256) = 32",
        "SELECT count(*) FROM storage_event",
    ):
        assert value_of(connection.execute(query)) == written, query
    assert sums(connection)[0] == written * 1_000
    connection.close()


def test_without_lnbits_the_reason_is_pips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lnbits, "REQUIREMENTS", (str(tmp_path / "missing"),))
    with pytest.raises(lnbits.LnbitsMissingError, match="missing"):
        lnbits.install(tmp_path)


def test_without_a_server_there_is_no_postgresql(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql, "SERVER", "no_such_server")
    with pytest.raises(postgresql.PostgresqlMissingError), postgresql.running_postgresql():
        pass


def test_the_command_prints_json() -> None:
    command = [sys.executable, "-m", "benchmarks.services", "crypto", "--rounds", "1", "--output", "json"]
    done = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    figures = json.loads(done.stdout)
    assert figures["encode_inline_cpu_us"] > 0
    assert figures["decode_inline_per_s"] > 0


def test_nip44_is_measured_against_nostr_sdk_in_one_run() -> None:
    figures = ciphers.measure(rounds=1, calls=2)
    costs = {name: value for name, value in figures.items() if name.endswith("_cpu_us")}
    assert len(costs) == len(ciphers.TEXTS) * 6
    assert all(isinstance(value, float) and value > 0 for value in figures.values())
    ratio = costs["nip44_encrypt_nostr_sdk_4k_cpu_us"] / costs["nip44_encrypt_4k_cpu_us"]
    assert figures["nip44_encrypt_4k_to_nostr_sdk"] == pytest.approx(ratio)


def test_a_benchmark_that_is_told_to_end_takes_along_what_it_started() -> None:
    program = """
from contextlib import ExitStack
from signal import pause
from benchmarks.figures import end_whole

end_whole()
with ExitStack() as started:
    started.callback(print, "taken along", flush=True)
    print("started", flush=True)
    pause()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
    assert out == "taken along\n"
    assert process.returncode == -signal.SIGINT
