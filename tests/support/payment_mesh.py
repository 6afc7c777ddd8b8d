"""Two payment replicas on one database with the NIP service as real processes; routers stand in for the sidecars."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import grpc
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from nipmesh.invoice.v1 import invoice_service_pb2 as invoice_pb2
from nipmesh.invoice.v1.invoice_service_pb2_grpc import InvoiceServiceStub
from nipmesh.payment.v1 import payment_pb2
from nipmesh.payment.v1 import payment_service_pb2 as pb
from nipmesh.payment.v1.payment_service_pb2_grpc import AccountServiceStub, LedgerServiceStub, PaymentServiceStub
from services.chassis.errors import reason_of
from services.chassis.failpoints import EXIT_CODE, VARIABLE
from services.chassis.testing import as_service, as_user
from services.lightning.simulated import Behaviour, Outsider
from services.payment.store.ledger import sums
from services.storage.sql import Connection
from support.postgresql import schema_connection
from support.settlement import Settlement

REPOSITORY = Path(__file__).resolve().parents[2]
OPERATOR = "0f" * 32
START_SECONDS_MAX = 60
RETRIED = (grpc.StatusCode.UNAVAILABLE,)


class Router(grpc.GenericRpcHandler):
    """What a sidecar does with outgoing unary calls: route by path, say who calls."""

    def __init__(self, service: str, routes: dict[str, Callable[[], str]]) -> None:
        self._identity = as_service(service)
        self._routes = routes
        self._channels: dict[str, grpc.aio.Channel] = {}

    def service(self, handler_call_details: Any) -> Any:
        method = handler_call_details.method

        async def forward(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            target = next(find() for prefix, find in self._routes.items() if method.startswith(prefix))
            channel = self._channels.setdefault(target, grpc.aio.insecure_channel(target))
            try:
                call = channel.unary_unary(method)
                return await call(request, metadata=self._identity, timeout=context.time_remaining())
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))
                raise

        return grpc.unary_unary_rpc_method_handler(forward)

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()


class Process:
    """One service process, its log in a file."""

    def __init__(self, module: str, name: str, folder: Path, environment: dict[str, str]) -> None:
        self.module, self.name, self.socket = module, name, folder / f"{name}.d" / "app.sock"
        self._log = folder / f"{name}.log"
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("NIPMESH_")},
            "PYTHONPATH": f"{REPOSITORY / 'protos'}:{REPOSITORY}",
            "NIPMESH_LISTEN": f"unix:{self.socket}",
            "NIPMESH_SERVICE": module.rpartition(".")[2],
            "NIPMESH_LOG_LEVEL": "warning",
            **environment,
        }
        self.process: asyncio.subprocess.Process | None = None

    async def start(self, **environment: str) -> None:
        """Start and wait until it serves, or until it has died at the failpoint that it was given: work may wait for it."""
        with self._log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", self.module, env=self._environment | environment, stdout=log, stderr=log
            )
        async with grpc.aio.insecure_channel(f"unix:{self.socket}") as channel:
            ready = asyncio.create_task(channel.channel_ready())
            ended = asyncio.create_task(self.process.wait())
            await asyncio.wait((ready, ended), timeout=START_SECONDS_MAX, return_when=asyncio.FIRST_COMPLETED)
            started = ready.done() or (VARIABLE in environment and self.process.returncode == EXIT_CODE)
            for task in (ready, ended):
                task.cancel()
            await asyncio.gather(ready, ended, return_exceptions=True)
        assert started, f"{self.name} did not start:\n{self.log()}"

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.returncode is None

    async def end(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal, wait for the end; the exit code."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        return await self.process.wait()

    def log(self) -> str:
        return self._log.read_text(errors="replace")


class PaymentMesh:
    """See the module. `call` goes to a living replica, again and elsewhere while the answer is UNAVAILABLE."""

    def __init__(
        self, folder: Path, *, real_invoices: bool = False, database_url: str = "", invoice_url: str = "", **rest: str
    ) -> None:
        """`invoice_url`: the invoice service has a database of its own; `rest`: more of the environment of both."""
        self.folder = folder
        self.database_url = database_url
        self.invoice_url = invoice_url or database_url
        self._rest = rest
        self.real_invoices = real_invoices
        self.settlement = Settlement(folder / "settlement.sqlite3")
        egress = f"unix:{folder}/egress.sock"
        shared = {
            "NIPMESH_EGRESS": egress,
            "NIPMESH_DATA_DIRECTORY": str(folder / "data"),
            "NIPMESH_DATABASE_URL": database_url,
            "NIPMESH_DRAIN_GRACE": "5",
            **rest,
        }
        self.replicas = [
            Process("services.payment", f"payment-{number}", folder, {**shared, "NIPMESH_REPLICA": str(number)})
            for number in range(2)
        ]
        self.nip = Process("services.nip", "nip-0", folder, self._nip_environment())
        self.invoice = Process("services.invoice", "invoice-0", folder, self._invoice_environment())
        self._servers: list[grpc.aio.Server] = []
        self._channels: dict[int, grpc.aio.Channel] = {}
        self._turn = 0
        self._total_msat = 0

    def _nip_environment(self) -> dict[str, str]:
        token_key = self.folder / "token.pem"
        private_key = ec.generate_private_key(ec.SECP256R1())
        token_key.write_bytes(private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        keystore_key = self.folder / "keystore.key"
        keystore_key.write_bytes(secrets.token_bytes(32))
        for file in (token_key, keystore_key):
            file.chmod(0o600)
        return {
            "NIPMESH_DATA_DIRECTORY": str(self.folder / "nip-data"),
            "NIPMESH_DATABASE_URL": self.database_url,
            "NIPMESH_TOKEN_KEY_FILE": str(token_key),
            "NIPMESH_TOKEN_ISSUER": "spiffe://nip.mesh/service/nip",
            "NIPMESH_TOKEN_AUDIENCE": "nip",
            "NIP_KEYSTORE_KEY_FILE": str(keystore_key),
        }

    def _invoice_environment(self) -> dict[str, str]:
        node_key = self.folder / "node.key"
        node_key.write_bytes(secrets.token_bytes(32))
        node_key.chmod(0o600)
        return {
            "NIPMESH_DATA_DIRECTORY": str(self.folder / "invoice-data"),
            "NIPMESH_DATABASE_URL": self.invoice_url,
            "NIPMESH_EGRESS": f"unix:{self.folder}/invoice-egress.sock",
            **self._rest,
            "INVOICE_NODE_KEY_FILE": str(node_key),
        }

    async def start(self) -> None:
        invoices = self.invoice.socket if self.real_invoices else self.folder / "settlement.sock"
        routes = {
            "/nipmesh.nip.": lambda: f"unix:{self.nip.socket}",
            "/nipmesh.invoice.": lambda: f"unix:{invoices}",
        }
        of_invoices = {"/nipmesh.payment.": self._living_socket, "/nipmesh.nip.": routes["/nipmesh.nip."]}
        self._routers = [Router("payment", routes), Router("invoice", of_invoices)]
        await self._serve("egress", lambda server: server.add_generic_rpc_handlers((self._routers[0],)))
        await self._serve("invoice-egress", lambda server: server.add_generic_rpc_handlers((self._routers[1],)))
        await self._serve("settlement", self.settlement.register)
        processes = [self.nip, *self.replicas, *([self.invoice] if self.real_invoices else [])]
        await asyncio.gather(*(process.start() for process in processes))

    def _living_socket(self) -> str:
        return next(f"unix:{replica.socket}" for replica in self.replicas if replica.alive)

    async def _serve(self, name: str, register: Callable[[grpc.aio.Server], None]) -> None:
        server = grpc.aio.server()
        register(server)
        server.add_insecure_port(f"unix:{self.folder}/{name}.sock")
        await server.start()
        self._servers.append(server)

    async def stop(self) -> None:
        for channel in self._channels.values():
            await channel.close()
        for process in (*self.replicas, self.nip, self.invoice):
            if process.alive:
                await process.end()
        for router in self._routers:
            await router.close()
        for server in self._servers:
            await server.stop(0)
        self.settlement.db.close()

    async def mend(self) -> None:
        """Everything runs, nothing is ordered to fail, and the books are counted from here."""
        self.settlement.faults.clear()
        for process in (self.nip, *self.replicas):
            if not process.alive:
                await process.start()
        self._total_msat = self._customers_msat()

    async def rule(self, payment_hash: str, behaviour: Behaviour) -> None:
        """Order what becomes of a payment of the simulated node."""
        outsider = await Outsider.open(self.folder / "data")
        try:
            await outsider.rule(payment_hash, behaviour)
        finally:
            await outsider.close()

    async def outside_invoice(self, amount_msat: int | None, description: str = "") -> str:
        """A payment request of somebody outside who reveals the preimage."""
        outsider = await Outsider.open(self.folder / "data")
        try:
            return outsider.invoice(amount_msat, description)
        finally:
            await outsider.close()

    def _customers_msat(self) -> int:
        sql = "SELECT coalesce(sum(credits_posted_msat - debits_posted_msat), 0) FROM account WHERE must_cover = 1"
        return int(self.query(sql)[0][0])

    def channel(self, number: int) -> grpc.aio.Channel:
        """A channel straight to one replica, as its sidecar has."""
        if number not in self._channels:
            target = f"unix:{self.replicas[number].socket}"
            self._channels[number] = grpc.aio.insecure_channel(target, (("grpc.initial_reconnect_backoff_ms", 50),))
        return self._channels[number]

    async def call(
        self, stub: Any, method: str, request: Any, user: str, *, role: str = "", timeout: float = 15
    ) -> Any:
        """One call under a user's token; retried on another replica as the sidecar does for idempotent methods."""
        for attempt in range(50):
            self._turn += 1
            living = [number for number, replica in enumerate(self.replicas) if replica.alive]
            channel = self.channel(living[self._turn % len(living)])
            try:
                return await getattr(stub(channel), method)(request, metadata=as_user(user, role=role), timeout=timeout)
            except grpc.aio.AioRpcError as error:
                if error.code() not in RETRIED or attempt == 49:
                    raise
                await asyncio.sleep(0.1)
        raise AssertionError

    async def open_account(self, user: str, amount_msat: int = 0) -> str:
        """A new account, with money from the operator."""
        request = pb.CreateAccountRequest(request_id=request_id())
        account_id = (await self.call(AccountServiceStub, "CreateAccount", request, user)).account.account_id
        if amount_msat:
            deposit = pb.DepositRequest(request_id=request_id(), account_id=account_id, amount_msat=amount_msat)
            await self.call(LedgerServiceStub, "Deposit", deposit, OPERATOR, role="operator")
        return str(account_id)

    async def account(self, account_id: str) -> payment_pb2.Account:
        """As the operator sees it."""
        request = pb.GetAccountRequest(account_id=account_id)
        return (await self.call(AccountServiceStub, "GetAccount", request, OPERATOR, role="operator")).account

    async def create_invoice(self, user: str, account_id: str, amount_msat: int, *, hold: bool = False) -> str:
        """An invoice of the real invoice service; its payment request."""
        request = invoice_pb2.CreateInvoiceRequest(
            request_id=request_id(), account_id=account_id, amount_msat=amount_msat
        )
        if hold:
            request.hold.SetInParent()
        response = await self.call_invoices("CreateInvoice", request, user)
        return str(response.invoice.payment_request)

    async def call_invoices(self, method: str, request: Any, user: str) -> Any:
        """One call of the real invoice service, again while it is not there."""
        for attempt in range(100):
            try:
                async with grpc.aio.insecure_channel(f"unix:{self.invoice.socket}") as channel:
                    return await getattr(InvoiceServiceStub(channel), method)(
                        request, metadata=as_user(user), timeout=5
                    )
            except grpc.aio.AioRpcError as error:
                if error.code() not in RETRIED or attempt == 99:
                    raise
                await asyncio.sleep(0.1)
        raise AssertionError

    async def pay(
        self, user: str, account_id: str, text: str, identifier: str = "", **rest: Any
    ) -> pb.PayInvoiceResponse:
        """PayInvoice."""
        timeout = rest.pop("timeout", 15)
        request = pb.PayInvoiceRequest(
            request_id=identifier or request_id(), account_id=account_id, payment_request=text, **rest
        )
        return await self.call(PaymentServiceStub, "PayInvoice", request, user, timeout=timeout)

    async def payment(self, payment_id: str, *, full: bool = False) -> payment_pb2.Payment:
        """As the operator sees it."""
        view = pb.PAYMENT_VIEW_FULL if full else pb.PAYMENT_VIEW_BASIC
        request = pb.GetPaymentRequest(payment_id=payment_id, view=view)
        return (await self.call(PaymentServiceStub, "GetPayment", request, OPERATOR, role="operator")).payment

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of the payment database."""
        with self.database("payment") as connection:
            return connection.execute(sql, values).fetchall()

    @contextlib.contextmanager
    def database(self, service: str) -> Iterator[Connection]:
        """The database of the payment or the invoice service, beside the replicas."""
        if self.database_url:
            with schema_connection(self.database_url, service) as connection:
                yield connection
            return
        folder = self.folder / ("data" if service == "payment" else f"{service}-data")
        with contextlib.closing(apsw.Connection(str(folder / f"{service}.sqlite3"))) as file:
            yield file

    def check_books(self, total_msat: int | None = None) -> None:
        """Debits equal credits, nothing is negative, nothing is held; customers have `total_msat` more than at first."""
        with self.database("payment") as connection:
            pending, *_ = sums(connection)
        assert pending == 0, "something is still held"
        sql = "SELECT count(*) FROM account WHERE must_cover = 1 AND credits_posted_msat < debits_posted_msat"
        assert self.query(sql) == [(0,)], "a balance is negative"
        if total_msat is not None:
            assert self._customers_msat() - self._total_msat == total_msat
        sql = "SELECT count(*) FROM payment WHERE state NOT IN (4, 5, 6)"
        assert self.query(sql) == [(0,)], "a payment is not final"


def request_id() -> str:
    """A fresh idempotency key."""
    return str(uuid.uuid4())


@contextlib.asynccontextmanager
async def payment_mesh(
    folder: Path, *, real_invoices: bool = False, database_url: str = "", invoice_url: str = "", **rest: str
) -> AsyncIterator[PaymentMesh]:
    """Started, and stopped at the end."""
    folder.chmod(0o700)
    mesh = PaymentMesh(folder, real_invoices=real_invoices, database_url=database_url, invoice_url=invoice_url, **rest)
    try:
        await mesh.start()
        yield mesh
    finally:
        await mesh.stop()


async def refused(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str | None]:
    """The code and reason of a call that must fail."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return error.code(), reason_of(error)
    raise AssertionError(f"the call succeeded: {answer}")


async def eventually(check: Callable[[], Awaitable[bool]], seconds: float = 5) -> None:
    """Ask until it is true."""
    async with asyncio.timeout(seconds):
        while not await check():
            await asyncio.sleep(0.05)
