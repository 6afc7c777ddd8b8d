"""`nipmesh init`: what it writes, asks, prints and refuses."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from generator.analysis import check_manifest
from generator.cli.main import main

PROTO = 'syntax = "proto3";\npackage shop.v1;\nservice OrderService { rpc Place(Order) returns (Order); }\nmessage Order {}\n'
ANSWER_SECONDS_MAX = 20.0


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: one .proto, no program."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "protos").mkdir()
    (tmp_path / "protos" / "shop.proto").write_text(PROTO)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, prog_name="nipmesh")


def test_it_writes_and_says_what_is_left(folder: Path) -> None:
    result = run("init")
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "wrote mesh.yaml: 1 service (shop)",
        "left to you:",
        "  - say in `run` how it is started: shop",
        "  - let it listen where NIPMESH_LISTEN says, or at PORT with `listen`: shop",
        "  - let it answer grpc.health.v1.Health/Check; it gets calls once it says SERVING: shop",
        "next: nipmesh check, nipmesh up",
    ]
    checked = run("check", "--no-envoy")
    assert checked.exit_code == 1
    line = (folder / "mesh.yaml").read_text().splitlines().index(next(filter(is_run, lines(folder)))) + 1
    assert f"mesh.yaml:{line}:10: error[NM110] nobody has said how `shop` is started" in checked.output


def lines(folder: Path) -> list[str]:
    return (folder / "mesh.yaml").read_text().splitlines()


def is_run(line: str) -> bool:
    return line.strip().startswith("run: COMMAND-THAT-STARTS-IT")


def test_what_is_said_is_not_asked(folder: Path) -> None:
    result = run("init", "--run", "shop=python -m shop --fast 'a b'", "--name", "The Shop")
    assert result.exit_code == 0
    mesh = check_manifest(folder / "mesh.yaml").mesh
    assert mesh is not None
    assert mesh.name == "the-shop"
    assert mesh.services[0].command == ("python", "-m", "shop", "--fast", "a b")


@pytest.mark.parametrize(
    ("run_option", "words"),
    [("shop", "is not SERVICE=COMMAND"), ("shop= ", "is not SERVICE=COMMAND"), ("shp=x", "did you mean `shop`?")],
)
def test_wrong_runs_are_wrong_usage(folder: Path, run_option: str, words: str) -> None:
    result = run("init", "--run", run_option)
    assert result.exit_code == 2
    assert words in result.output
    assert not (folder / "mesh.yaml").exists()


def test_it_never_writes_over_a_file(folder: Path) -> None:
    (folder / "mesh.yaml").write_text("mine")
    result = run("init")
    assert result.exit_code == 1
    assert "mesh.yaml is there already" in result.output
    assert (folder / "mesh.yaml").read_text() == "mine"


def test_a_dash_prints_and_writes_nothing(folder: Path) -> None:
    (folder / "mesh.yaml").write_text("mine")
    printed = run("init", "--output", "-")
    assert printed.exit_code == 0
    assert printed.stdout.startswith("# This mesh")
    run("-f", "other.yaml", "init")
    run("init", "-o", "third.yaml")
    assert {(folder / name).read_text() for name in ("other.yaml", "third.yaml")} == {printed.stdout}


def test_a_folder_elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert run("init", "-o", str(folder / "mesh.yaml"), "--run", "shop=x").exit_code == 0
    assert check_manifest(folder / "mesh.yaml").mesh is not None


def test_wrong_protos_are_shown_and_nothing_is_written(folder: Path) -> None:
    (folder / "protos" / "shop.proto").write_text(PROTO.replace("message Order", "mesage Order"))
    result = run("init")
    assert result.exit_code == 1
    assert "protos/shop.proto:4:1: error[NM202]" in result.output
    assert "    4 | mesage Order {}" in result.output
    assert not (folder / "mesh.yaml").exists()


def test_no_protos_is_a_friendly_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("init")
    assert result.exit_code == 1
    assert "there is no .proto file below this folder" in result.output
    assert "nipmesh init --example" in result.output
    assert not list(tmp_path.iterdir())


def test_whoever_has_no_manifest_is_told_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "; `nipmesh init` writes one" in run("check").output
    (tmp_path / "mesh.yaml").mkdir()
    assert run("check").exit_code == 2, "that is a folder: click says so"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    result = run("init", "-o", str(tmp_path / "no" / "mesh.yaml"))
    assert result.exit_code == 1
    assert f"cannot read {tmp_path / 'no'}: No such file or directory" in result.output


def test_the_example_is_a_whole_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("init", "--example")
    assert result.exit_code == 0, result.output
    assert "left to you" not in result.output
    assert run("check", "--no-envoy").exit_code == 0
    (tmp_path / "mesh.yaml").unlink()
    (tmp_path / "server.py").write_text("mine")
    (tmp_path / "protos" / "greeting" / "v1" / "greeting.proto").unlink()
    again = run("init", "--example")
    assert again.exit_code == 1
    assert "server.py is there already" in again.output
    assert (tmp_path / "server.py").read_text() == "mine"
    assert not (tmp_path / "protos" / "greeting" / "v1" / "greeting.proto").exists()


@pytest.mark.parametrize("answer", ["python -m shop", ""])
def test_on_a_terminal_it_asks_what_it_cannot_know(folder: Path, answer: str) -> None:
    assert "How is one replica of `shop` (shop.v1.OrderService) started?" in typed(folder, answer)
    mesh = check_manifest(folder / "mesh.yaml").mesh
    assert (mesh.services[0].command if mesh is not None else None) == (tuple(answer.split()) or None)


def test_on_a_terminal_it_can_be_told_to_ask_nothing(folder: Path) -> None:
    assert "?" not in typed(folder, None, "--no-input")
    assert (folder / "mesh.yaml").exists()


def typed(folder: Path, answer: str | None, *words: str) -> str:
    """What a terminal shows while the answer is typed; no answer: what it shows to the end."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "generator", "init", *words]
    environment = {**os.environ, "TERM": "dumb"}
    process = subprocess.Popen(command, cwd=folder, stdin=follower, stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    shown, until = b"", time.monotonic() + ANSWER_SECONDS_MAX
    while time.monotonic() < until and select.select([leader], [], [], ANSWER_SECONDS_MAX)[0]:
        try:
            shown += os.read(leader, 4096)
        except OSError:
            break
        if answer is not None and b"say it later" in shown:
            os.write(leader, answer.encode() + b"\n")
            answer = None
    os.close(leader)
    assert process.wait(timeout=ANSWER_SECONDS_MAX) == 0, shown
    return shown.decode()
