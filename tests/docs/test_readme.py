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

from support.checkout import DEFAULT_GATEWAY, blocks, copy_checkout, environment, run_script
from support.mesh import REPOSITORY
from support.orders import with_piece

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(240)]

READY_SECONDS_MAX = 60
NIPS = REPOSITORY / "docs" / "nips"
CALLED = [f"docs/nips/{number}.md" for number in ("01", "04", "07", "19", "44", "49")]
PROGRAMS = [f"docs/nips/{number}.md" for number in ("42", "57", "98")]
WITH_APPS = [f"docs/nips/{number}.md" for number in ("46", "47")]
"""Their examples need apps and relays: see test_remote_signing.py and test_wallet_connect.py."""
PAGES = [*(f"docs/services/{name}.md" for name in ("nip", "invoice", "payment")), *CALLED]
"""Their examples go on with the README's session."""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked files on a free gateway port, with this environment as `.venv`."""
    folder = tmp_path_factory.mktemp("readme")
    copy_checkout(folder)
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
    first = blocks("README.md", "sh")[0].strip()
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
    if shutil.which("grpcurl", path=environment()["PATH"]) is None:
        pytest.skip("grpcurl is not installed (go install github.com/fullstorydev/grpcurl/cmd/grpcurl@latest)")
    examples = [block for page in PAGES for block in blocks(page, "sh")]
    assert len(examples) == len(PAGES)
    script = "\n".join([*blocks("README.md", "sh")[1:], *examples]).replace(DEFAULT_GATEWAY, gateway)
    done = run_script(script, running, 200)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    shown = ("hello mesh", "STATE_SUCCEEDED", '"receipt"', "nipmesh.payment.v1.PaymentService", "a third back")
    for expected in (
        *shown,
        "RESULT_VALID",
        "for old programs",
        "between us",
        "wss://relay.example.com",
        "npub10elfcs4",
        "ncryptsec1",
    ):
        assert expected in done.stdout
    assert done.stdout.count('"replayed": true') == 1


def test_every_python_block_runs(running: Path, gateway: str) -> None:
    for block in blocks("README.md", "python"):
        command = [sys.executable, "-c", block.replace(DEFAULT_GATEWAY, gateway)]
        done = subprocess.run(command, cwd=running, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("npub1")


def test_each_page_of_a_nip_is_tried() -> None:
    assert sorted([*CALLED, *PROGRAMS, *WITH_APPS]) == sorted(f"docs/nips/{path.name}" for path in NIPS.glob("*.md"))


@pytest.mark.parametrize("page", PROGRAMS)
def test_the_examples_of_the_nips_run(running: Path, gateway: str, page: str) -> None:
    found = blocks(page, "python")
    assert found, "each page of a NIP shows how it is used"
    for block in found:
        command = [sys.executable, "-c", block.replace(DEFAULT_GATEWAY, gateway)]
        done = subprocess.run(command, cwd=running, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout, "it prints what it found"


def test_the_manifest_shown_is_sound(checkout: Path) -> None:
    shown, _ = blocks("README.md", "yaml")
    nip = "  nip:\n    run: python -m services.nip\n    serves: [nipmesh.nip.v1.NipService]\n"
    (checkout / "shown.yaml").write_text(shown + nip)
    command = [".venv/bin/nipmesh", "-f", "shown.yaml", "check", "--no-envoy"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_traffic_policies_shown_are_sound_and_envoy_takes_them(checkout: Path) -> None:
    _, piece = blocks("README.md", "yaml")
    (checkout / "policies.yaml").write_text(with_piece(piece, (checkout / "mesh.yaml").read_text()))
    command = [".venv/bin/nipmesh", "-f", "policies.yaml", "check"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Envoy accepts the configuration of 7 workloads" in done.stdout
