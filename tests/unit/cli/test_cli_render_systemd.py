"""`nipmesh render --target systemd`: what it writes, what it says, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from generator.cli.main import main

PROTO = """\
syntax = "proto3";
package echo.v1;
message Text { string text = 1; }
service EchoService { rpc Say(Text) returns (Text); }
"""
MANIFEST = """\
mesh: test
protos: [protos]
services:
  echo:
    run: python -m echo
    serves: [echo.v1.EchoService]
    probe: {interval: 5s}
gateway:
  authentication:
    issuer: echo
    public: [EchoService/Say]
  expose:
    echo: [EchoService/Say]
"""
HOSTS = "hosts:\n  alpha: {address: 10.0.0.1, runs: [gateway, echo-0]}\n  beta: {address: 10.0.0.2, runs: [echo]}\n"
Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs `nipmesh -f mesh.yaml …` and looks at its exit code."""
    (tmp_path / "protos").mkdir()
    (tmp_path / "protos/echo.proto").write_text(PROTO)
    (tmp_path / "mesh.yaml").write_text(MANIFEST)
    (tmp_path / "hosts.yaml").write_text(HOSTS)

    def command(*arguments: str, expect: int = 0) -> Result:
        result = CliRunner().invoke(main, ["-f", str(tmp_path / "mesh.yaml"), *arguments], prog_name="nipmesh")
        assert result.exit_code == expect, (result.output, result.exception)
        return result

    return command


def test_without_keys_it_says_what_that_means_and_with_them_it_does_not(tmp_path: Path, run: Run) -> None:
    root = str(tmp_path / "r")
    words = ("render", "--target", "systemd", "--root", root, "-o", str(tmp_path / "out"))
    told = run(*words)
    assert "note[NM609] no unit of `echo` has a probe" in told.stderr
    assert "(`nipmesh secrets`) and this is rendered again" in told.stderr
    assert f"{tmp_path}/out{root}/etc/systemd/system/nipmesh-echo-0.service" in told.stdout.splitlines()
    run("secrets", "--state", f"{root}/var/lib/nipmesh")
    again = run(*words)
    assert "nipmesh secrets" not in again.stderr
    assert all("/envoy/gateway/" in line for line in again.stdout.splitlines()), "the issuer's key, and nothing else"
    assert again.stdout
    assert run(*words).stdout == ""


def test_the_programs_of_another_machine_are_named(tmp_path: Path, run: Run) -> None:
    run("render", "--target", "systemd", "--programs", "/opt/nipmesh/bin", "-o", str(tmp_path / "out"))
    units = tmp_path / "out/etc/systemd/system"
    assert "ExecStart=/opt/nipmesh/bin/python -m echo" in (units / "nipmesh-echo-1.service").read_text()
    assert "ExecStart=/opt/nipmesh/bin/envoy " in (units / "nipmesh-gateway.service").read_text()


def test_one_of_several_machines(tmp_path: Path, run: Run) -> None:
    hosts = ("--hosts", str(tmp_path / "hosts.yaml"))
    for name in ("alpha", "beta"):
        run("render", "--target", "systemd", *hosts, "--host", name, "-o", str(tmp_path / name))
    units = {
        name: {path.name for path in (tmp_path / name / "etc/systemd/system").glob("*-sidecar.service")}
        for name in ("alpha", "beta")
    }
    assert units == {"alpha": {"nipmesh-echo-0-sidecar.service"}, "beta": {"nipmesh-echo-1-sidecar.service"}}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--hosts", "hosts.yaml"), 2, "--hosts and --host go together"),
        (("--host", "alpha"), 2, "--hosts and --host go together"),
        (("--hosts", "hosts.yaml", "--host", "gamma"), 2, "has: alpha, beta"),
        (("--hosts", "mesh.yaml", "--host", "alpha"), 1, "error[NM101] unknown key"),
        (("--leave", "echo-2"), 2, "echo-2 is none of: echo-0, echo-1"),
        (("--root", f"/{'long/' * 20}"), 1, "choose a shorter --root or name"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    tmp_path: Path, run: Run, arguments: tuple[str, ...], code: int, words: str
) -> None:
    found = [str(tmp_path / word) if word.endswith(".yaml") else word for word in arguments]
    refused = run("render", "--target", "systemd", "-o", str(tmp_path / "out"), *found, expect=code)
    assert words in refused.stderr
    assert not (tmp_path / "out").exists()
