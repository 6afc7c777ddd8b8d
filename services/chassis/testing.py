"""For tests: a service in the same process, on sockets in a temporary folder, and the metadata that its sidecar would add."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeVar

import grpc

from services.chassis.caller import PEER_HEADER
from services.chassis.server import serve
from services.chassis.service import Application, ServiceDefinition
from services.chassis.settings import ChassisSettings

SettingsT = TypeVar("SettingsT", bound=ChassisSettings)

TRUST_DOMAIN = "nip.mesh"


def as_user(subject: str, *, role: str = "", expire_time_s: float | None = None) -> tuple[tuple[str, str], ...]:
    """Metadata of a call through the gateway with a token of `subject` (64 hex); `role="operator"` for an operator.

    `expire_time_s`: when the token expires, in seconds since 1970; None: the services do not know.
    """
    expire_time = "" if expire_time_s is None else f"{expire_time_s:.3f}"
    claims = (("x-nipmesh-subject", subject), ("x-nipmesh-role", role), ("x-nipmesh-token-expire-time", expire_time))
    return (*as_gateway(), *(claim for claim in claims if claim[1]))


def as_gateway() -> tuple[tuple[str, str], ...]:
    """Metadata of a call through the gateway without a token."""
    return ((PEER_HEADER, f"URI=spiffe://{TRUST_DOMAIN}/gateway"),)


def as_service(name: str) -> tuple[tuple[str, str], ...]:
    """Metadata of a call from another service of the mesh."""
    return ((PEER_HEADER, f"URI=spiffe://{TRUST_DOMAIN}/service/{name}"),)


@contextlib.asynccontextmanager
async def running(
    service: ServiceDefinition[SettingsT],
    folder: Path,
    /,
    **settings: Any,  # fields of the settings
) -> AsyncIterator[tuple[Application[SettingsT], grpc.aio.Channel]]:
    """Serve on `folder`/app.sock with durable state in `folder`/data; yield the application and a plain channel to it."""
    await asyncio.to_thread(folder.chmod, 0o700)
    values: dict[str, Any] = {
        "listen": f"unix:{folder}/app.sock",
        "data_directory": folder / "data",
        "drain_grace": 1.0,
    } | settings
    async with (
        serve(service, service.settings(**values)) as app,
        grpc.aio.insecure_channel(app.settings.listen) as channel,
    ):
        yield app, channel
