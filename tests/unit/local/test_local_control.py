"""What the control socket and its client take and refuse, without a mesh."""

import asyncio
import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from generator.cli.main import main
from generator.outputs.local.client import ControlError, NotRunningError, call, current_file, is_alive, read_current
from generator.outputs.local.control import Control, RequestError, integer, parse_request, text
from generator.outputs.local.detach import Outcome, send_outcome
from generator.outputs.local.events import Journal
from generator.outputs.local.lock import UpError, locked
from generator.outputs.local.paths import StatePaths

if TYPE_CHECKING:
    from generator.outputs.local.supervisor import Supervisor


@given(st.binary(max_size=200))
def test_nonsense_is_refused_and_nothing_else(line: bytes) -> None:
    try:
        request = parse_request(line)
    except RequestError:
        return
    assert isinstance(request["command"], str)


@pytest.mark.parametrize(
    "line", [b"", b"[]", b"null", b"{}", b'{"command": 1}', b'{"command"', b"\xff\xfe", b"[" * 60_000]
)
def test_what_is_no_request_is_refused(line: bytes) -> None:
    with pytest.raises(RequestError):
        parse_request(line)


@pytest.mark.parametrize("value", [0, 101, "3", None, True, 2.0])
def test_a_number_has_its_limits(value: object) -> None:
    with pytest.raises(RequestError, match='"replicas" must be a number from 1 to 100'):
        integer({"replicas": value}, "replicas", least=1, most=100)
    assert integer({"replicas": 3}, "replicas", least=1, most=100) == 3


@pytest.mark.parametrize("value", ["", None, 1, ["nip"]])
def test_a_service_is_a_text(value: object) -> None:
    with pytest.raises(RequestError, match='"service" must be a text'):
        text({"service": value}, "service")


@pytest.fixture
def answers(tmp_path: Path) -> Iterator[list[bytes]]:
    """A supervisor that sends these lines and hangs up."""
    lines: list[bytes] = []
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "c"))
    server.listen()
    manifest = tmp_path / "mesh.yaml"
    current_file(manifest).parent.mkdir()
    current_file(manifest).write_text(json.dumps({"control": str(tmp_path / "c"), "pid": 1}))

    def serve() -> None:
        connection, _ = server.accept()
        with connection, connection.makefile("rb") as requests:
            requests.readline()
            connection.sendall(b"".join(lines))

    thread = threading.Thread(target=serve)
    thread.start()
    yield lines
    thread.join(5)
    server.close()


def test_the_client_passes_events_on_and_gives_the_result(tmp_path: Path, answers: list[bytes]) -> None:
    answers += [b'{"event": {"kind": "a"}}\n', b'{"event": {"kind": "b"}}\n', b'{"result": "done"}\n']
    seen: list[object] = []
    assert call(tmp_path / "mesh.yaml", {"command": "x"}, on_event=seen.append) == "done"
    assert seen == [{"kind": "a"}, {"kind": "b"}]


def test_a_refusal_is_an_error(tmp_path: Path, answers: list[bytes]) -> None:
    answers.append(b'{"error": "no"}\n')
    with pytest.raises(ControlError, match="no"):
        call(tmp_path / "mesh.yaml", {"command": "x"})


def test_a_supervisor_that_dies_on_the_way_is_an_error(tmp_path: Path, answers: list[bytes]) -> None:
    answers.append(b'{"event": {}}\n')
    with pytest.raises(ControlError, match="ended before it answered"):
        call(tmp_path / "mesh.yaml", {"command": "x"})


def test_without_a_supervisor_the_mesh_is_not_running(tmp_path: Path) -> None:
    manifest = tmp_path / "mesh.yaml"
    with pytest.raises(NotRunningError):
        read_current(manifest)
    current_file(manifest).parent.mkdir()
    current_file(manifest).write_text(json.dumps({"control": str(tmp_path / "gone")}))
    with pytest.raises(NotRunningError):
        call(manifest, {"command": "status"})
    assert not is_alive(2**22 + 1)


def test_there_is_one_supervisor_per_mesh(tmp_path: Path) -> None:
    paths = StatePaths(root=tmp_path / ".nipmesh")
    with locked(paths):
        paths.current.write_text(json.dumps({"pid": 42, "gateway": "127.0.0.1:8080"}))
        with pytest.raises(UpError, match=r"process 42, gateway 127\.0\.0\.1:8080"), locked(paths):
            raise AssertionError("two of them")
    with locked(paths):
        assert paths.lock.exists()


def test_a_reader_that_is_gone_does_not_matter(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    send_outcome(ours.detach(), Outcome(is_ready=True, reason=""))


DAMAGED = [
    "",
    "[]",
    "{}",
    "null",
    '{"pid"',
    '{"pid": "x"}',
    '{"pid": 1}',
    '{"pid": true, "control": "c"}',
    "[" * 60_000,
]
MEND = {False: (3, 0, "the mesh is not running; "), True: (1, 1, "end it with `kill ")}
"""Exit codes of `status` and `down` and what both say, by whether a supervisor runs."""


@pytest.mark.parametrize("content", DAMAGED)
@pytest.mark.parametrize("runs", MEND)
def test_a_damaged_state_file_is_named_with_its_mend(tmp_path: Path, content: str, runs: bool) -> None:
    paths = StatePaths(root=tmp_path / ".nipmesh")
    paths.make()
    paths.current.write_text(content)
    (paths.runs / "a.json").write_text(json.dumps({"supervisor": os.getpid()}))
    (paths.runs / "b.json").write_text("[]")
    status_code, down_code, words = MEND[runs]
    with locked(paths) if runs else contextlib.nullcontext():
        for command, code in (("status", status_code), ("down", down_code)):
            done = CliRunner().invoke(main, ["--file", str(tmp_path / "mesh.yaml"), command])
            assert (done.exit_code, done.output.count("\n")) == (code, 1), done.output
            assert str(paths.current) in done.output
            assert words in done.output
            assert (f"kill {os.getpid()}`" in done.output) == runs


@pytest.mark.parametrize("content", ["[]", "{}", "nonsense"])
def test_a_second_supervisor_is_refused_whatever_the_state_file_holds(tmp_path: Path, content: str) -> None:
    paths = StatePaths(root=tmp_path / ".nipmesh")
    with locked(paths):
        paths.current.write_text(content)
        with pytest.raises(UpError, match="already running; stop it"), locked(paths):
            raise AssertionError("two of them")


async def test_what_happens_in_one_go_with_the_end_is_passed_on_too(tmp_path: Path) -> None:
    journal = Journal()
    control = Control(cast("Supervisor", SimpleNamespace(journal=journal)), tmp_path / "c", lambda: None)
    sent: list[str] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message["event"]["text"])

    async def work() -> str:
        for number in range(5):
            journal.tell("plan", str(number))
        return "done"

    assert await control.with_events(work(), send) == "done"
    assert sent == ["0", "1", "2", "3", "4"]


async def test_an_operation_whose_client_is_gone_goes_on_and_its_end_is_told(tmp_path: Path) -> None:
    journal = Journal()
    control = Control(cast("Supervisor", SimpleNamespace(journal=journal)), tmp_path / "c", lambda: None)
    is_over = asyncio.Event()

    async def send(message: dict[str, Any]) -> None:
        raise ConnectionResetError

    async def work() -> str:
        journal.tell("plan", "begins")
        await asyncio.sleep(0.05)
        is_over.set()
        raise KeyError("a mistake of ours")

    with pytest.raises(ConnectionResetError):
        await control.with_events(work(), send)
    await asyncio.wait_for(is_over.wait(), 5)
    await asyncio.sleep(0)
    assert journal.history[-1].line().endswith("operation-failed: KeyError: 'a mistake of ours'")
