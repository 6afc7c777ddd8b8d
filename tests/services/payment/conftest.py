"""A mesh of payment replicas per test, in a folder whose name is short enough for sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio

from support.folders import short_folder
from support.payment_mesh import PaymentMesh, payment_mesh
from support.payment_service import Service, serving


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
async def full_mesh(database_settings: dict[str, Any]) -> AsyncIterator[PaymentMesh]:
    """With the real invoice service."""
    with short_folder() as folder:
        url = database_settings.get("database_url", "")
        async with payment_mesh(folder, real_invoices=True, database_url=url) as running:
            yield running


@pytest_asyncio.fixture
async def service() -> AsyncIterator[Service]:
    """One process, nothing real beside it."""
    with short_folder() as folder:
        async with serving(folder) as running:
            yield running
