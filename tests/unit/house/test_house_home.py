"""The way into our packages, from folders that are in the way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import nipmesh_home
from nipmesh_home import module_command

TRAP = 'raise SystemExit("taken for ours")\n'


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with packages of our names."""
    for name in ("generator", "services"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(TRAP)
    return tmp_path


def run(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_is_ours(project: Path) -> None:
    done = run(str(Path(sys.executable).parent / "nipmesh"), "--help", folder=project)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: nipmesh")


@pytest.mark.parametrize(
    ("module", "words", "shown"),
    [
        ("generator", ("--version",), "nipmesh "),
        ("generator.introspection", ("--help",), "usage: python -m generator.introspection"),
        ("services.payment", ("verify", "--help"), "usage: python -m services.payment verify"),
    ],
)
def test_modules_are_ours(project: Path, module: str, words: tuple[str, ...], shown: str) -> None:
    done = run(*module_command(module), *words, folder=project)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(shown)


def test_without_a_module_it_says_how(project: Path) -> None:
    done = run(*module_command("x")[:-1], folder=project)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == nipmesh_home.USAGE + "\n"


def test_a_module_that_is_not_there(project: Path) -> None:
    done = run(*module_command("services.nowhere"), folder=project)
    assert done.returncode == 1
    assert "services.nowhere" in done.stderr
