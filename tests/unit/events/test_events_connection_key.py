"""A key that cannot be read is said as such."""

from __future__ import annotations

from pathlib import Path

import pytest

from generator.outputs.nats import AdminConnection, EventsError


async def test_a_key_that_is_missing_or_none_is_an_error_with_its_file(tmp_path: Path) -> None:
    """The client was closed before it had tried to connect, which ended in an assertion of its own."""
    damaged = tmp_path / "damaged.nk"
    damaged.write_text("SU")
    for key in (tmp_path / "missing.nk", damaged):
        with pytest.raises(EventsError, match=str(key)):
            async with AdminConnection(url="tls://127.0.0.1:1", key=key, authorities=None).open():
                pass
