"""Two replicas of every service as real processes on one engine; routers stand in for the sidecars. Made to be killed."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from services.chassis.testing import as_service, as_user
from support.payment_mesh import Process
from support.postgresql import Server

SERVICES = ("nip", "invoice", "payment")
REPLICAS = 2
VERIFY_SECONDS = 120
UNCLEAR = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
    }
)
"""Codes after which a caller does not know what happened."""
FORWARD_ATTEMPTS = 2
"""As a sidecar does for idempotent methods: once more, on the other replica."""


class Sidecar(grpc.GenericRpcHandler):
    """What a sidecar does with outgoing unary calls: routes by package to a living replica, says who calls, repeats UNAVAILABLE once."""

    def __init__(self, cluster: Cluster, service: str) -> None:
        self._cluster = cluster
        self._identity = as_service(service)

    def service(self, handler_call_details: Any) -> Any:
        method = handler_call_details.method
        target = method.split(".")[1]

        async def forward(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            for attempt in range(FORWARD_ATTEMPTS):
                call = self._cluster.channel(target, attempt).unary_unary(method)
                try:
                    return await call(request, metadata=self._identity, timeout=context.time_remaining())
                except grpc.aio.AioRpcError as error:
                    if error.code() is grpc.StatusCode.UNAVAILABLE and attempt + 1 < FORWARD_ATTEMPTS:
                        continue
                    await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))
            raise AssertionError

        return grpc.unary_unary_rpc_method_handler(forward)


@dataclass(slots=True)
class Cluster:
    """See the module. `environment` is added to that of every service: where the database is."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    more: dict[str, dict[str, str]] = field(default_factory=dict)
    """Added to that of one service."""
    server: Server | None = None
    """The PostgreSQL that its databases lie in; None: SQLite files."""
    processes: dict[str, list[Process]] = field(default_factory=dict)
    _channels: dict[tuple[str, int], grpc.aio.Channel] = field(default_factory=dict)
    _servers: list[grpc.aio.Server] = field(default_factory=list)
    _turn: int = 0

    async def start(self) -> None:
        """Everything runs and serves when this returns."""
        secrets_of = {"nip": self._nip_secrets(), "invoice": self._invoice_secrets(), "payment": {}}
        for service in SERVICES:
            self.processes[service] = [
                self._process(service, number, secrets_of[service]) for number in range(REPLICAS)
            ]
            server = grpc.aio.server()
            server.add_generic_rpc_handlers((Sidecar(self, service),))
            server.add_insecure_port(f"unix:{self._egress(service)}")
            await server.start()
            self._servers.append(server)
        await asyncio.gather(*(process.start() for process in self.all()))

    def all(self) -> list[Process]:
        """Every process."""
        return [process for processes in self.processes.values() for process in processes]

    def _egress(self, service: str) -> Path:
        return self.folder / f"{service}-egress.sock"

    def _process(self, service: str, number: int, more: dict[str, str]) -> Process:
        environment = {
            "NIPMESH_EGRESS": f"unix:{self._egress(service)}",
            "NIPMESH_DATA_DIRECTORY": str(self.folder / f"{service}-data"),
            "NIPMESH_REPLICA": str(number),
            "NIPMESH_DRAIN_GRACE": "5",
            **more,
            **self.environment,
            **self.more.get(service, {}),
        }
        return Process(f"services.{service}", f"{service}-{number}", self.folder, environment)

    def _nip_secrets(self) -> dict[str, str]:
        pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return {
            "NIPMESH_TOKEN_KEY_FILE": self._secret("token.pem", pem),
            "NIPMESH_TOKEN_ISSUER": "spiffe://nip.mesh/service/nip",
            "NIPMESH_TOKEN_AUDIENCE": "nip",
            "NIP_KEYSTORE_KEY_FILE": self._secret("keystore.key", secrets.token_bytes(32)),
        }

    def _invoice_secrets(self) -> dict[str, str]:
        return {"INVOICE_NODE_KEY_FILE": self._secret("node.key", secrets.token_bytes(32))}

    def _secret(self, name: str, value: bytes) -> str:
        path = self.folder / name
        path.write_bytes(value)
        path.chmod(0o600)
        return str(path)

    def channel(self, service: str, attempt: int = 0) -> grpc.aio.Channel:
        """A channel to a living replica, another one for another attempt; to a dead one when none lives."""
        self._turn += 1
        living = [number for number, process in enumerate(self.processes[service]) if process.alive]
        number = living[(self._turn + attempt) % len(living)] if living else attempt % REPLICAS
        if (service, number) not in self._channels:
            target = f"unix:{self.processes[service][number].socket}"
            options = (("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200))
            self._channels[service, number] = grpc.aio.insecure_channel(target, options)
        return self._channels[service, number]

    async def call(
        self,
        stub: Any,
        method: str,
        request: Any,
        user: str,
        *,
        role: str = "",
        timeout: float = 15,
        attempts: int = 60,
    ) -> Any:
        """One call of a user, repeated under the same request_id while its outcome is unclear; the last error is raised."""
        service = stub.__module__.split(".")[1]
        for attempt in range(attempts):
            try:
                call = getattr(stub(self.channel(service, attempt)), method)
                return await call(request, metadata=as_user(user, role=role), timeout=timeout)
            except grpc.aio.AioRpcError as error:
                if error.code() not in UNCLEAR or attempt + 1 == attempts:
                    raise
                await asyncio.sleep(min(0.05 * (attempt + 1), 0.5))
        raise AssertionError

    async def verify(self) -> None:
        """Every entry of the ledger, payment, saga and answer agrees with the others, says the operator's command."""
        place = self.environment["NIPMESH_DATABASE_URL"] or str(self.folder / "payment-data" / "payment.sqlite3")
        command = [sys.executable, "-m", "services.payment", "verify", "--database", place]
        verify = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        output, _ = await asyncio.wait_for(verify.communicate(), VERIFY_SECONDS)
        assert verify.returncode == 0, output.decode()

    async def stop(self) -> None:
        """End every process and server that this cluster started."""
        for channel in self._channels.values():
            await channel.close()
        for process in self.all():
            if process.alive:
                await process.end()
        for server in self._servers:
            await server.stop(0)

    def logs(self) -> str:
        """What all processes wrote, for a failed test."""
        return "\n".join(f"--- {process.name}\n{process.log()[-4_000:]}" for process in self.all())


@contextlib.asynccontextmanager
async def running_cluster(
    folder: Path, server: Server | None = None, more: dict[str, dict[str, str]] | None = None, **environment: str
) -> AsyncIterator[Cluster]:
    """Started, and stopped at the end; on SQLite files, or in a new database of a PostgreSQL server."""
    folder.chmod(0o700)
    url = server.new_database() if server is not None else ""
    shared = {"NIPMESH_DATABASE_URL": url, **environment}
    cluster = Cluster(folder=folder, environment=shared, more=more or {}, server=server)
    try:
        await cluster.start()
        yield cluster
    finally:
        await cluster.stop()
        if server is not None:
            server.drop_database(url)


async def kill_and_restart(process: Process, dice: random.Random, *, down_s_max: float = 0.5) -> None:
    """kill -9, a pause, and up again."""
    if process.alive:
        await process.end()
        await asyncio.sleep(dice.uniform(0, down_s_max))
        await process.start()
