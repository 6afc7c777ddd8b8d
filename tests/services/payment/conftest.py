"""A mesh of payment replicas per test, in a folder whose name is short enough for sockets."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest_asyncio

from support.payment_mesh import PaymentMesh, payment_mesh


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_mesh() -> AsyncIterator[PaymentMesh]:
    """With the invoice service in small, whose faults a test can order; started once for the tests of a module."""
    with short_folder() as folder:
        async with payment_mesh(folder) as running:
            yield running


@pytest_asyncio.fixture(loop_scope="module")
async def mesh(shared_mesh: PaymentMesh) -> PaymentMesh:
    """Whole again, whatever the test before did to it."""
    await shared_mesh.mend()
    return shared_mesh


@pytest_asyncio.fixture
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
