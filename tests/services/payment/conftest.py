"""A mesh of payment replicas per test, in a folder whose name is short enough for sockets."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.payment_mesh import PaymentMesh, payment_mesh


@pytest.fixture
async def mesh() -> AsyncIterator[PaymentMesh]:
    folder = Path(tempfile.mkdtemp(prefix="nm-"))
    try:
        async with payment_mesh(folder) as running:
            yield running
    finally:
        shutil.rmtree(folder)
