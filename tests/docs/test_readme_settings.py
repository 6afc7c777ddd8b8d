"""The README's tables of settings are what the services read."""

from __future__ import annotations

import pytest

from services.chassis.settings import ChassisSettings, settings_table
from services.invoice.settings import InvoiceSettings
from services.nip.settings import NipSettings
from support.mesh import REPOSITORY


@pytest.mark.parametrize("kind", [ChassisSettings, NipSettings, InvoiceSettings])
def test_every_setting_is_documented(kind: type[ChassisSettings]) -> None:
    table = settings_table(kind)
    assert table in (REPOSITORY / "README.md").read_text(), f"the README wants:\n{table}"
