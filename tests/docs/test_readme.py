"""Every command block of the README, in its order, in a copy of the repository, as a newcomer would type it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.mesh import REPOSITORY, free_port
from support.orders import with_piece

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(240)]

BLOCK = re.compile(r"^```(sh|python|yaml)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DEFAULT_GATEWAY = "127.0.0.1:8080"
READY_SECONDS_MAX = 60


def blocks(language: str) -> list[str]:
    """The README's blocks of one language; those marked `notest` show what runs inside a service."""
    text = (REPOSITORY / "README.md").read_text()
    return [body for kind, mark, body in BLOCK.findall(text) if kind == language and "notest" not in mark]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked files on a free gateway port, with this environment as `.venv`."""
    folder = tmp_path_factory.mktemp("readme")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    ).stdout.split("\n")  # fmt: skip
    for name in filter(None, listed):
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)
    (folder / ".venv").symlink_to(Path(sys.executable).parent.parent)
    manifest = folder / "mesh.yaml"
    manifest.write_text(manifest.read_text().replace(DEFAULT_GATEWAY, f"127.0.0.1:{free_port()}"))
    return folder


@pytest.fixture(scope="module")
def gateway(checkout: Path) -> str:
    """Where the copy's gateway listens."""
    found = re.search(r"listen: (127\.0\.0\.1:\d+)", (checkout / "mesh.yaml").read_text())
    assert found is not None
    return found.group(1)


@pytest.fixture(scope="module")
def running(checkout: Path) -> Iterator[Path]:
    """`make up`, the README's first block, in a terminal of its own; Ctrl-C at the end must drain it."""
    first = blocks("sh")[0].strip()
    assert first == "make up"
    (checkout / ".venv" / ".installed").touch()
    with (checkout / "up.log").open("wb") as log:
        process = subprocess.Popen(first.split(), cwd=checkout, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait_until_ready(checkout, process)
            yield checkout
        finally:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(timeout=60)
    output = (checkout / "up.log").read_text()
    assert "nothing is left behind" in output, output


def _wait_until_ready(checkout: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_SECONDS_MAX
    while subprocess.run([".venv/bin/nipmesh", "status"], cwd=checkout, capture_output=True, check=False).returncode:
        assert process.poll() is None, (checkout / "up.log").read_text()
        assert time.monotonic() < deadline, (checkout / "up.log").read_text()
        time.sleep(0.3)


def test_every_command_block_runs(running: Path, gateway: str) -> None:
    go_path = os.environ.get("GOPATH", str(Path.home() / "go"))
    path = f"{os.environ['PATH']}:{go_path}/bin"
    if shutil.which("grpcurl", path=path) is None:
        pytest.skip("grpcurl is not installed (go install github.com/fullstorydev/grpcurl/cmd/grpcurl@latest)")
    script = "\n".join(blocks("sh")[1:]).replace(DEFAULT_GATEWAY, gateway)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=running, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    for expected in ("hello mesh", "STATE_SUCCEEDED", '"receipt"', "nipmesh.payment.v1.PaymentService"):
        assert expected in done.stdout


def test_every_python_block_runs(running: Path, gateway: str) -> None:
    for block in blocks("python"):
        command = [sys.executable, "-c", block.replace(DEFAULT_GATEWAY, gateway)]
        done = subprocess.run(command, cwd=running, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("npub1")


def test_the_manifest_shown_is_sound(checkout: Path) -> None:
    shown, _ = blocks("yaml")
    nip = "  nip:\n    run: python -m services.nip\n    serves: [nipmesh.nip.v1.NipService]\n"
    (checkout / "shown.yaml").write_text(shown + nip)
    command = [".venv/bin/nipmesh", "-f", "shown.yaml", "check", "--no-envoy"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_traffic_policies_shown_are_sound_and_envoy_takes_them(checkout: Path) -> None:
    _, piece = blocks("yaml")
    (checkout / "policies.yaml").write_text(with_piece(piece, (checkout / "mesh.yaml").read_text()))
    command = [".venv/bin/nipmesh", "-f", "policies.yaml", "check"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Envoy accepts the configuration of 7 workloads" in done.stdout
