"""A mesh of payment replicas per test, in a folder whose name is short enough for sockets."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.payment_mesh import PaymentMesh, payment_mesh


@pytest.fixture
async def mesh() -> AsyncIterator[PaymentMesh]:
    """With the invoice service in small, whose faults a test can order."""
    with short_folder() as folder:
        async with payment_mesh(folder) as running:
            yield running


@pytest.fixture
async def full_mesh() -> AsyncIterator[PaymentMesh]:
    """With the real invoice service."""
    with short_folder() as folder:
        async with payment_mesh(folder, real_invoices=True) as running:
            yield running


@contextmanager
def short_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="nm-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
