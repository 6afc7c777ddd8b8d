"""The tables of settings are what the services read: the common one in the README, each service's own on its page."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from services.chassis.settings import ChassisSettings, settings_table
from services.reference import BLOCKS, DEFINITIONS, PAGES, rendered
from support.mesh import REPOSITORY


def test_every_common_setting_is_in_the_readme() -> None:
    table = settings_table(ChassisSettings)
    assert table in (REPOSITORY / "README.md").read_text(), f"the README wants:\n{table}"


@pytest.mark.parametrize("name", DEFINITIONS)
def test_every_service_has_a_page_that_is_up_to_date(name: str) -> None:
    page = PAGES / f"{name}.md"
    text = page.read_text()
    assert rendered(page) == text, "make generated"
    for block in ("methods", "states", "errors", "limits", "settings"):
        assert f"<!-- generated: {block} -->" in text
    for variable in settings_variables(name):
        assert f"| `{variable}` |" in text


def settings_variables(name: str) -> list[str]:
    """What the service reads beyond the common settings."""
    rows = settings_table(DEFINITIONS[name].settings).splitlines()[2:]
    return [row.split("`")[1] for row in rows]


def test_every_block_is_on_some_page() -> None:
    text = "".join(page.read_text() for page in PAGES.parent.rglob("*.md"))
    assert [name for name in BLOCKS if f"<!-- generated: {name} -->" not in text] == []


def test_a_stale_page_is_noticed_and_rewritten(tmp_path: Path) -> None:
    page = PAGES / "nip.md"
    before = page.read_text()
    stale = before.replace("| `LOGIN_REPLAYED` |", "| `LOGIN_FORGOTTEN` |", 1)
    assert stale != before
    copy = tmp_path / "nip.md"
    copy.write_text(stale)
    assert rendered(copy) == before


def test_the_check_is_a_command() -> None:
    command = [sys.executable, "-m", "services.reference", "--check"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")
