"""What a test run leaves when it is told to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.mesh import REPOSITORY

RUN = """
import pathlib, time, pytest

@pytest.fixture
def server():
    pathlib.Path("begun").touch()
    yield
    pathlib.Path("ended").touch()

def test_something_long(server):
    time.sleep(60)
"""


def test_fixtures_are_torn_down_at_sigterm(tmp_path: Path) -> None:
    (tmp_path / "test_run.py").write_text(RUN)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "tests")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "support.ending", "-p", "no:cacheprovider", "test_run.py"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        until_s = time.monotonic() + 30
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < until_s, "it did not begin"
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=30)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, printed
    assert (tmp_path / "ended").exists()
