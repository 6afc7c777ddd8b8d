"""Real service processes that are called with any bytes, and what must be true of their answers."""

from __future__ import annotations

import asyncio
import importlib
import re
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from nipmesh.invoice.v1 import invoice_service_pb2 as invoices
from nipmesh.invoice.v1.invoice_service_pb2_grpc import InvoiceServiceStub
from nipmesh.nip.v1 import nip_service_pb2 as nips
from nipmesh.nip.v1.nip_service_pb2_grpc import NipServiceStub
from nipmesh.payment.v1 import payment_service_pb2 as payments
from nipmesh.payment.v1.payment_service_pb2_grpc import AccountServiceStub, PaymentServiceStub
from services.chassis.errors import reason_of
from services.chassis.secret import SecretBytes
from services.chassis.testing import as_user
from services.nip.domain import nip19, nip49
from support.lightning import foreign_payment_request
from support.mesh import REPOSITORY
from support.nostr import User, encode_authorization
from support.payment_mesh import PaymentMesh, request_id
from support.rpc_bytes import ALICE, BOB, OPERATOR, Case
from support.zaps import zap_text

DEADLINE_S: Final = 15.0
"""A call that has no answer by then hangs: the slowest of them wait for three seconds at most."""
STREAM_S: Final = 0.3
"""How long a stream is listened to."""
STREAM_MESSAGES_MAX: Final = 5
AT_ONCE: Final = 16
KEYS: Final = 12
"""Some of them are locked, disabled and deleted on the way."""
INTERNALS: Final = re.compile(
    r"Traceback|\.py\b|\bline \d+|(?i:sqlite|apsw|constraint)|\bSELECT\b|asyncio|<class|object at 0x|/tmp/|\b[A-Z]\w*Error\b"
    r"|NoneType|unexpected keyword|protobuf\.message",
)
"""What no client is to read."""
TOO_LARGE: Final = re.compile(r"SERVER: Received message larger than max \(\d+ vs\. 4194304\)")
"""What gRPC answers by itself before we see the request."""


def all_methods() -> list[MethodDescriptor]:
    """Every method of every service under protos/nipmesh."""
    files = sorted((REPOSITORY / "protos" / "nipmesh").rglob("*.proto"))
    names = [".".join(path.relative_to(REPOSITORY / "protos").with_suffix("").parts) + "_pb2" for path in files]
    services = [one for name in names for one in importlib.import_module(name).DESCRIPTOR.services_by_name.values()]
    return [method for service in services for method in service.methods]


@dataclass(slots=True)
class Fuzzer:
    """Calls the processes of a mesh; collects what is wrong."""

    mesh: PaymentMesh
    pool: dict[str, list[str]] = field(default_factory=dict)
    methods: list[MethodDescriptor] = field(default_factory=list)
    codes: dict[str, int] = field(default_factory=dict)
    channels: dict[str, grpc.aio.Channel] = field(default_factory=dict)

    async def prepare(self) -> None:
        """Make accounts, invoices, payments and keys whose ids the cases use, and see which methods are served."""
        self.pool = await make_pool(self.mesh)
        for method in all_methods():
            if await self._is_served(method):
                self.methods.append(method)

    def channel(self, method: MethodDescriptor) -> grpc.aio.Channel:
        """To the process that serves this method."""
        package = method.containing_service.full_name.split(".")[1]
        process = {"nip": self.mesh.nip, "invoice": self.mesh.invoice}.get(package, self.mesh.replicas[0])
        if package not in self.channels:
            self.channels[package] = grpc.aio.insecure_channel(f"unix:{process.socket}")
        return self.channels[package]

    async def _is_served(self, method: MethodDescriptor) -> bool:
        path = f"/{method.containing_service.full_name}/{method.name}"
        try:
            await self.channel(method).unary_unary(path)(b"", timeout=DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            return error.code() is not grpc.StatusCode.UNIMPLEMENTED
        return True

    async def run(self, cases: list[Case]) -> list[str]:
        """Call with all of them; what is wrong, with how to see it again."""
        places = asyncio.Semaphore(AT_ONCE)

        async def one(case: Case) -> str | None:
            async with places:
                return await self.complaint(case)

        found = await asyncio.gather(*(one(case) for case in cases))
        return [*filter(None, found), *self.process_complaints()]

    async def complaint(self, case: Case) -> str | None:
        """Make one call; what is wrong with the answer."""
        try:
            answer = await self._call(case)
            wrong = _wrong_answer(case, answer)
            self.codes["OK"] = self.codes.get("OK", 0) + 1
        except grpc.aio.AioRpcError as error:
            wrong = _wrong_error(error)
            name = reason_of(error) or error.code().name
            self.codes[name] = self.codes.get(name, 0) + 1
        return None if wrong is None else f"{wrong}\n{_described(case)}"

    async def _call(self, case: Case) -> list[bytes]:
        channel = self.channel(case.method)
        if not case.method.server_streaming:
            return [await channel.unary_unary(case.path)(case.body, metadata=case.metadata, timeout=DEADLINE_S)]
        call = channel.unary_stream(case.path)(case.body, metadata=case.metadata, timeout=DEADLINE_S)
        seen: list[bytes] = []
        try:
            async with asyncio.timeout(STREAM_S):
                async for message in call:
                    seen.append(message)
                    if len(seen) == STREAM_MESSAGES_MAX:
                        break
        except TimeoutError:
            pass  # it is a watch: that it says nothing for a while is right
        finally:
            call.cancel()
        return seen

    def process_complaints(self) -> list[str]:
        """Processes that have ended, and what they logged about themselves."""
        wrong = []
        for process in (self.mesh.nip, self.mesh.invoice, *self.mesh.replicas):
            if not process.alive:
                wrong.append(f"{process.name} has ended:\n{process.log()[-3_000:]}")
            for line in process.log().splitlines():
                if '"uncaught"' in line or "Traceback" in line or '"critical"' in line:
                    wrong.append(f"{process.name} logged: {line[:3_000]}")
        return wrong

    async def close(self) -> None:
        """Let go of the channels."""
        for channel in self.channels.values():
            await channel.close()


def _wrong_answer(case: Case, answer: list[bytes]) -> str | None:
    try:
        for message in answer:
            GetMessageClass(case.method.output_type).FromString(message)
    except DecodeError as error:
        return f"the answer is no {case.method.output_type.name}: {error}"
    return None


def _wrong_error(error: grpc.aio.AioRpcError) -> str | None:
    code, text, reason = error.code(), error.details() or "", reason_of(error)
    said = f"{code.name} {reason}: {text!r}"
    if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED):
        return said
    if code is grpc.StatusCode.UNAVAILABLE:
        return f"everything is there, and yet {said}"
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and TOO_LARGE.fullmatch(text):
        return None
    if reason is None:
        return f"no reason: {said}"
    if INTERNALS.search(text) or not text or not text.isprintable():
        return f"not for clients: {said}"
    return None


def _described(case: Case) -> str:
    body = case.body if len(case.body) < 400 else case.body[:400] + b"... %d bytes" % len(case.body)
    replay = f"NIPMESH_RPC_CASE={case.seed}:{case.number} .venv/bin/python -m pytest tests/services/fuzzing/test_fuzzing_rpcs.py"
    return f"  {case.path} {', '.join(case.what)}\n  {body!r}\n  {case.metadata}\n  replay: {replay}"


async def make_pool(mesh: PaymentMesh) -> dict[str, list[str]]:
    """A few of everything."""
    rich, poor = await mesh.open_account(ALICE, 50_000_000_000), await mesh.open_account(BOB, 5_000)
    texts = [
        await mesh.create_invoice(user, account, 1_000 + n)
        for n in range(4)
        for user, account in ((ALICE, rich), (BOB, poor))
    ]
    texts += [foreign_payment_request(amount_msat=n * 1_000, description=f"number {n}") for n in range(1, 6)]
    paid = [(await mesh.pay(ALICE, rich, text)).payment for text in (texts[1], texts[-1])]
    pool: dict[str, list[str]] = {
        "account_id": [rich, rich, poor],
        "payment_request": [*texts, foreign_payment_request(amount_msat=5_000, description="simulated:fail")],
        "payment_id": [*(payment.payment_id for payment in paid), request_id()],
        "payment_hash": [payment.payment_hash for payment in paid],
        "description": ["tea", "simulated:hang", "ä" * 300],
        **{name: ["tea", "because"] for name in ("display_name", "reason", "reference", "content")},
        **{name: [ALICE, BOB, OPERATOR] for name in ("pubkey", "owner_pubkey", "actor_pubkey")},
    }
    async with (
        grpc.aio.insecure_channel(f"unix:{mesh.invoice.socket}") as invoice,
        grpc.aio.insecure_channel(f"unix:{mesh.nip.socket}") as nip,
    ):
        as_alice: Any = as_user(ALICE)
        first = await InvoiceServiceStub(invoice).ListInvoices(
            invoices.ListInvoicesRequest(page_size=2), metadata=as_alice
        )
        keys = [await _new_key(nip) for _ in range(KEYS)]
        key = keys[0]
        encrypt = nips.EncryptRequest(key_id=key.key.key_id, peer=key.key.npub, plaintext="tea", cipher="CIPHER_NIP44")
        payload = (await NipServiceStub(nip).Encrypt(encrypt, metadata=as_alice)).payload
        template = nips.SignEventRequest(request_id=request_id(), key_id=key.key.key_id)
        template.template.kind = 1
        event = (await NipServiceStub(nip).SignEvent(template, metadata=as_alice)).event
    accounts = await mesh.call(
        AccountServiceStub, "ListAccounts", payments.ListAccountsRequest(page_size=1), OPERATOR, role="operator"
    )
    moved = await mesh.call(
        AccountServiceStub, "ListTransfers", payments.ListTransfersRequest(account_id=rich, page_size=1), ALICE
    )
    listed = await mesh.call(PaymentServiceStub, "ListPayments", payments.ListPaymentsRequest(page_size=1), ALICE)
    pool["page_token"] = [
        "",
        first.next_page_token,
        accounts.next_page_token,
        moved.next_page_token,
        listed.next_page_token,
    ]
    pool["invoice_id"] = [each.invoice_id for each in first.invoices]
    pool["transfer_id"] = [each.transfer_id for each in moved.transfers]
    pool |= {"key_id": [each.key.key_id for each in keys], "id": [event.id], "sig": [event.sig]}
    return pool | _texts(key.key.pubkey, key.key.npub, payload)


async def _new_key(channel: grpc.aio.Channel) -> nips.CreateKeyResponse:
    request = nips.CreateKeyRequest(request_id=request_id(), display_name="tea", fresh=True)
    made: nips.CreateKeyResponse = await NipServiceStub(channel).CreateKey(request, metadata=as_user(ALICE))
    return made


def _texts(pubkey: str, npub: str, payload: str) -> dict[str, list[str]]:
    """What the methods for keys and texts take, right and nearly right."""
    encrypted = nip49.encrypt(SecretBytes(b"\x07" * 32), SecretBytes(b"password"), nip49.KeySecurity.SAFE, log_n=1)
    profile = nip19.encode(nip19.Profile(pubkey=pubkey, relays=("wss://relay.example",)))
    return {
        "ncryptsec": [nip49.text_of(encrypted)],
        "nsec": [nip19.nsec(SecretBytes(b"\x08" * 32))],
        "password": ["password", "password", "wrong one"],
        "peer": [pubkey, npub, profile, "nostr:" + npub, npub[:-1], "f" * 64],
        "payload": [payload, payload[:-4] + "AAA=", "#" + payload, "AAAA?iv=AAAA"],
        "plaintext": ["tea", "a" * 70_000],
        "text": [npub, profile, "nostr:" + profile, nip19.nsec(SecretBytes(b"\x08" * 32)), npub[:-1]],
        "author": [pubkey],
        "event_id": [pubkey],
        "identifier": ["", "tea"],
        "url": ["wss://relay.example", "ws://[::1]:80/x", "https://relay.example"],
        "relays": ["wss://relay.example"],
        **_proofs(pubkey),
    }


def _proofs(pubkey: str) -> dict[str, list[str]]:
    """What the methods for proofs and zaps take, right and nearly right."""
    user, url = User(), "https://relay.example"
    texts = [zap_text(), zap_text(("amount", "1000"), ("P", pubkey)), zap_text(("p", pubkey)), zap_text()[:-9], "{}"]
    return {
        "authorization": [
            encode_authorization(user.event(27235, [["u", url], ["method", method]])) for method in ("GET", "post")
        ]
        + [user.authorization("http://127.0.0.1:8080"), encode_authorization(user.event(1, []))],
        "method": ["GET", "post", "GET "],
        "payload_sha256": ["", "", pubkey],
        "relay_url": ["ws://127.0.0.1:8080", "WS://127.0.0.1:8080/", "wss://relay.example", "http://relay.example"],
        "zap_request": texts,
        "lnurl": ["", "lnurl1dp68gurn", "lnurl1b"],
        "recipient_pubkey": [pubkey],
        "zapped_coordinate": ["", f"30023:{pubkey}:x", "x"],
    }
