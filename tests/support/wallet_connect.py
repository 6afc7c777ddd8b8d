"""The three services in the test's process, routers for their sidecars, a real Nostr relay; and an app that speaks NIP-47 by hand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import grpc
from prometheus_client import CollectorRegistry

from nipmesh.invoice.v1 import invoice_pb2
from nipmesh.invoice.v1 import invoice_service_pb2 as invoices
from nipmesh.invoice.v1.invoice_service_pb2_grpc import InvoiceServiceStub
from nipmesh.nip.v1 import wallet_connect_service_pb2 as pb
from nipmesh.nip.v1.wallet_connect_service_pb2_grpc import WalletConnectServiceStub
from nipmesh.payment.v1 import payment_pb2
from nipmesh.payment.v1 import payment_service_pb2 as payments
from nipmesh.payment.v1.payment_service_pb2_grpc import AccountServiceStub, LedgerServiceStub, PaymentServiceStub
from services.chassis.secret import SecretBytes
from services.chassis.testing import as_user, running
from services.invoice.service import SERVICE as INVOICE
from services.nip.domain import nip04, nip44
from services.nip.domain.nip47.words import REQUEST_KIND, RESPONSE_KIND
from services.nip.service import NIP_SERVICE
from services.nostr.bip340 import Signer
from services.nostr.event import Event, Template, sign_event
from services.payment.service import SERVICE as PAYMENT
from services.relays import Filter, RelayOptions, RelayPool
from support.nip_process import write_secrets
from support.payment_mesh import Router

ALICE, BOB, OPERATOR = "a1" * 32, "b0" * 32, "0f" * 32
ALL_METHODS = (
    "pay_invoice",
    "make_invoice",
    "lookup_invoice",
    "list_transactions",
    "get_balance",
    "get_info",
    "make_hold_invoice",
    "settle_hold_invoice",
    "cancel_hold_invoice",
)
FOLLOW_S = 15
ALL_TOPICS = ("payment_received", "payment_sent", "hold_invoice_accepted")


def request_id() -> str:
    return str(uuid.uuid4())


def terms(methods: tuple[str, ...] = ALL_METHODS, topics: tuple[str, ...] = (), **rest: Any) -> pb.WalletTerms:
    """Terms of a connection; what is not said is not limited."""
    return pb.WalletTerms(methods=methods, notifications=topics, **rest)


@dataclass(frozen=True, kw_only=True)
class WalletMesh:
    """Stubs of everything, called as users."""

    relay: str
    registry: CollectorRegistry
    """What the NIP service counts."""
    wallets: Any
    payments: Any
    accounts: Any
    ledger: Any
    invoices: Any

    async def open(self, user: str, amount_msat: int = 0) -> str:
        """A new account of the user, with money from the operator."""
        request = payments.CreateAccountRequest(request_id=request_id())
        account_id = (await self.accounts.CreateAccount(request, metadata=as_user(user))).account.account_id
        if amount_msat:
            deposit = payments.DepositRequest(request_id=request_id(), account_id=account_id, amount_msat=amount_msat)
            await self.ledger.Deposit(deposit, metadata=as_user(OPERATOR, role="operator"))
        return str(account_id)

    async def balance(self, account_id: str) -> int:
        request = payments.GetAccountRequest(account_id=account_id)
        response = await self.accounts.GetAccount(request, metadata=as_user(OPERATOR, role="operator"))
        return int(response.account.balance_msat)

    async def invoice(self, user: str, account_id: str, amount_msat: int, **rest: Any) -> invoice_pb2.Invoice:
        request = invoices.CreateInvoiceRequest(
            request_id=request_id(), account_id=account_id, amount_msat=amount_msat, **rest
        )
        return (await self.invoices.CreateInvoice(request, metadata=as_user(user))).invoice

    async def pay(self, user: str, account_id: str, payment_request: str) -> payment_pb2.Payment:
        request = payments.PayInvoiceRequest(
            request_id=request_id(), account_id=account_id, payment_request=payment_request
        )
        return (await self.payments.PayInvoice(request, metadata=as_user(user), timeout=10)).payment

    async def connect(
        self, user: str, account_id: str, wallet_terms: pb.WalletTerms | None = None, **rest: Any
    ) -> pb.CreateWalletConnectionResponse:
        request = pb.CreateWalletConnectionRequest(
            **{"request_id": request_id(), "account_id": account_id, "terms": wallet_terms or terms(), **rest}
        )
        response: pb.CreateWalletConnectionResponse = await self.wallets.CreateWalletConnection(
            request, metadata=as_user(user)
        )
        return response

    async def connection(self, user: str, connection_id: str) -> pb.WalletConnection:
        request = pb.GetWalletConnectionRequest(connection_id=connection_id)
        return (await self.wallets.GetWalletConnection(request, metadata=as_user(user))).connection


@asynccontextmanager
async def wallet_mesh(folder: Path, relay: str, **settings: Any) -> AsyncIterator[WalletMesh]:
    """Started, and stopped at the end; `settings` are those of all three services."""
    write_secrets(folder)
    node_key = folder / "node.key"
    node_key.write_bytes(b"\x07" * 32)
    node_key.chmod(0o600)
    async with AsyncExitStack() as stack:
        sockets = {name: f"unix:{folder}/{name}/app.sock" for name in ("nip", "payment", "invoice")}
        routes = {f"/nipmesh.{name}.": (lambda at=at: at) for name, at in sockets.items()}
        egress = {}
        for name in sockets:
            egress[name] = f"unix:{folder}/{name}-egress.sock"
            await stack.enter_async_context(_routing(name, egress[name], routes))
        values = {
            "payment": settings,
            "invoice": {"INVOICE_NODE_KEY_FILE": node_key, **settings},
            "nip": {
                "token_key_file": folder / "token.pem",
                "token_issuer": "spiffe://nip.mesh/service/nip",
                "token_audience": "nip",
                "NIP_KEYSTORE_KEY_FILE": folder / "keystore.key",
                "wallet_relays": relay,
                **settings,
            },
        }
        channels = {}
        for name, service in (("payment", PAYMENT), ("invoice", INVOICE), ("nip", NIP_SERVICE)):
            (folder / name).mkdir(mode=0o700, exist_ok=True)
            more = {"egress": egress[name], "service": name, **values[name]}
            app, channels[name] = await stack.enter_async_context(running(service, folder / name, **more))  # type: ignore[arg-type]
        yield WalletMesh(
            relay=relay,
            registry=app.registry,
            wallets=WalletConnectServiceStub(channels["nip"]),
            payments=PaymentServiceStub(channels["payment"]),
            accounts=AccountServiceStub(channels["payment"]),
            ledger=LedgerServiceStub(channels["payment"]),
            invoices=InvoiceServiceStub(channels["invoice"]),
        )


@asynccontextmanager
async def _routing(name: str, address: str, routes: dict[str, Any]) -> AsyncIterator[None]:
    """What stands where a service's sidecar would."""
    router, server = Router(name, routes), grpc.aio.server()
    server.add_generic_rpc_handlers((router,))
    server.add_insecure_port(address)
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)
        await router.close()


@dataclass(kw_only=True)
class App:
    """An app that speaks NIP-47 by hand: it can say what no library would."""

    pool: RelayPool
    relay: str
    service_pubkey: str
    secret: SecretBytes
    responses: dict[str, list[Event]] = field(default_factory=dict)
    others: list[Event] = field(default_factory=list)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def pubkey(self) -> str:
        return Signer(self.secret).public_key.hex()

    def event(self, content: str, *tags: tuple[str, ...], created_at: int | None = None, kind: int = 0) -> Event:
        """A signed request with this content."""
        template = Template(
            kind=kind or REQUEST_KIND, tags=(("p", self.service_pubkey), *tags), content=content, created_at=None
        )
        moment = int(time.time()) if created_at is None else created_at
        return sign_event(Signer(self.secret), template, created_at=moment, auxiliary_key=b"\x01" * 32)

    def request(self, method: str, params: Any = None, **rest: Any) -> Event:
        """A well-formed request, encrypted with NIP-44."""
        return self.event(self.sealed({"method": method, "params": params or {}}), ("encryption", "nip44_v2"), **rest)

    def sealed(self, document: Any) -> str:
        text = document if isinstance(document, str) else json.dumps(document)
        return nip44.encrypt(text, nip44.conversation_key(self.secret, self.service_pubkey))

    def sealed_nip04(self, document: Any) -> str:
        return nip04.encrypt(json.dumps(document), nip04.shared_secret(self.secret, self.service_pubkey))

    def opened(self, event: Event) -> Any:
        """The JSON in an event of the wallet."""
        if "?iv=" in event.content:
            text = nip04.decrypt(event.content, nip04.shared_secret(self.secret, self.service_pubkey))
        else:
            text = nip44.decrypt(event.content, nip44.conversation_key(self.secret, self.service_pubkey))
        return json.loads(text)

    async def send(self, event: Event) -> None:
        outcomes = await self.pool.publish(event, [self.relay])
        assert all(outcome.arrived for outcome in outcomes.values()), outcomes

    async def response(self, event_id: str, seconds: float = 15) -> Event:
        """Wait for the event that answers a request."""
        async with asyncio.timeout(seconds):
            while event_id not in self.responses:
                self._arrived.clear()
                await self._arrived.wait()
        return self.responses[event_id][0]

    async def answer(self, event: Event, seconds: float = 15) -> Any:
        """Wait for the answer to a request that was sent."""
        return self.opened(await self.response(event.id, seconds))

    async def ask(self, method: str, params: Any = None, seconds: float = 15) -> Any:
        """One request and its answer."""
        event = self.request(method, params)
        await self.send(event)
        return await self.answer(event, seconds)

    async def told(self, count: int, seconds: float = 15) -> list[Event]:
        """Wait until so many other events came: the info event, and notifications."""
        async with asyncio.timeout(seconds):
            while len(self.others) < count:
                self._arrived.clear()
                await self._arrived.wait()
        return self.others

    async def read(self, subscription: Any) -> None:
        async for _, event in subscription:
            if event.kind == RESPONSE_KIND:
                asked = next(tag[1] for tag in event.tags if tag[0] == "e")
                self.responses.setdefault(asked, []).append(event)
            else:
                self.others.append(event)
            self._arrived.set()


@asynccontextmanager
async def app_of(uri: str, relay: str = "") -> AsyncIterator[App]:
    """An app with a connection's URI, listening; at this relay if one is named."""
    parts = urlsplit(uri)
    query = parse_qs(parts.query)
    assert parts.scheme == "nostr+walletconnect"
    options = RelayOptions(private_allowed=True)
    # LocalRelay forgets events when one socket is used for both directions.
    async with RelayPool(options) as sending, RelayPool(options) as listening:
        app = App(
            pool=sending,
            relay=relay or query["relay"][0],
            service_pubkey=parts.netloc,
            secret=SecretBytes(bytes.fromhex(query["secret"][0])),
        )
        subscription = listening.subscribe([app.relay], [Filter(authors=(app.service_pubkey,))])
        assert await subscription.following(FOLLOW_S), "the relay does not answer"
        reader = asyncio.create_task(app.read(subscription))
        try:
            yield app
        finally:
            subscription.close()
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader
