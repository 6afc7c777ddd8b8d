"""What the adapter of lnd makes of answers that a real node gives in bad moments only.

The real nodes are in tests/services/lightning. Here a server of lnd's API says what it is told to say.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from services.chassis.errors import StartError
from services.lightning.lnd import LndPayingNode, LndReceivingNode, LndSettings, open_paying_node, paying, subscription
from services.lightning.lnd.connection import LndConnection
from services.lightning.lnd.wire import invoices_pb2_grpc, lightning_pb2_grpc, router_pb2_grpc
from services.lightning.lnd.wire import lightning_pb2 as lnrpc
from services.lightning.node import (
    NodeFailed,
    NodeFailure,
    NodePending,
    NodeUnavailableError,
    NodeUnknown,
    ReceivedState,
)
from support.node_contract import Bill, payment_of, stranger_invoice

HASH = bytes(range(32))
MACAROON = b"\x02\x01\x03lnd"
OWN_KEY = "02" + "1" * 64
HELD = lnrpc.Invoice(
    r_hash=HASH, state=lnrpc.Invoice.ACCEPTED, htlcs=[lnrpc.InvoiceHTLC(amt_msat=1_000, expiry_height=383)]
)


def invoice(state: Any) -> lnrpc.Invoice:
    return lnrpc.Invoice(r_hash=HASH, state=state)


@pytest.fixture(scope="module")
def certificate() -> tuple[bytes, bytes]:
    """A key and a certificate that it signed itself, as lnd's."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private, signed.public_bytes(pem)


class Speaker(lightning_pb2_grpc.LightningServicer, invoices_pb2_grpc.InvoicesServicer, router_pb2_grpc.RouterServicer):
    """Answers each method with what `script` has for it: messages of a stream, one message, or an error to abort with."""

    def __init__(self) -> None:
        self.script: dict[str, list[Any]] = {}
        self.macaroons: set[str] = set()

    async def _say(self, method: str, context: Any) -> AsyncIterator[Any]:
        self.macaroons |= {str(value) for key, value in context.invocation_metadata() if key == "macaroon"}
        for item in self.script[method]:
            if isinstance(item, tuple):
                await context.abort(*item)
            elif callable(item):
                await item()
            else:
                yield item

    async def _say_one(self, method: str, context: Any) -> Any:
        return await anext(self._say(method, context))

    async def GetInfo(self, request: Any, context: Any) -> Any:
        script = self.script["GetInfo"]
        answer = script.pop(0) if len(script) > 1 else script[0]
        return await context.abort(*answer) if isinstance(answer, tuple) else answer

    async def ListInvoices(self, request: Any, context: Any) -> Any:
        known = [one for one in self.script["ListInvoices"] if request.reversed or one.add_index > request.index_offset]
        newest = max((one.add_index for one in known), default=0)
        return lnrpc.ListInvoiceResponse(invoices=known, last_index_offset=newest)

    async def LookupInvoiceV2(self, request: Any, context: Any) -> Any:
        return await self._say_one("LookupInvoiceV2", context)

    async def CancelInvoice(self, request: Any, context: Any) -> Any:
        return await self._say_one("CancelInvoice", context)

    async def SettleInvoice(self, request: Any, context: Any) -> Any:
        return await self._say_one("SettleInvoice", context)

    async def SubscribeInvoices(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for message in self._say("SubscribeInvoices", context):
            yield message

    async def SubscribeSingleInvoice(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for message in self._say("SubscribeSingleInvoice", context):
            yield message

    async def SendPaymentV2(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for message in self._say("SendPaymentV2", context):
            yield message

    async def TrackPaymentV2(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for message in self._say("TrackPaymentV2", context):
            yield message

    async def EstimateRouteFee(self, request: Any, context: Any) -> Any:
        return await self._say_one("EstimateRouteFee", context)


@asynccontextmanager
async def serving(speaker: Speaker, certificate: tuple[bytes, bytes], folder: Path) -> AsyncIterator[LndSettings]:
    """The speaker on a port, and how to reach it."""
    server = grpc.aio.server()
    lightning_pb2_grpc.add_LightningServicer_to_server(speaker, server)
    invoices_pb2_grpc.add_InvoicesServicer_to_server(speaker, server)
    router_pb2_grpc.add_RouterServicer_to_server(speaker, server)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([certificate]))
    await server.start()
    (folder / "tls.cert").write_bytes(certificate[1])
    (folder / "macaroon").touch(mode=0o600)
    (folder / "macaroon").write_bytes(MACAROON)
    try:
        yield LndSettings(address=f"127.0.0.1:{port}", tls_cert=folder / "tls.cert", macaroon=folder / "macaroon")
    finally:
        await server.stop(grace=None)


@pytest.fixture
async def node(certificate: tuple[bytes, bytes], tmp_path: Path) -> AsyncIterator[SimpleNamespace]:
    """The speaker, and the two adapters that ask it."""
    speaker = Speaker()
    async with serving(speaker, certificate, tmp_path) as settings:
        connection = LndConnection(settings)
        yield SimpleNamespace(
            says=speaker.script,
            speaker=speaker,
            settings=settings,
            payer=LndPayingNode(connection, "sb", OWN_KEY),
            receiver=LndReceivingNode(connection, "sb"),
        )
        await connection.close()


UNKNOWN, NOT_FOUND = grpc.StatusCode.UNKNOWN, grpc.StatusCode.NOT_FOUND
ORDER = payment_of(stranger_invoice("sb", 1_000_000), 1_000_000)
NEVER_HEARD = [(NOT_FOUND, "payment isn't initiated")]


async def for_ever() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("broken", ["Stream removed", "unexpected HTTP status code received from server: 500", ""])
async def test_an_error_that_is_not_in_lnds_words_never_says_that_nothing_was_paid(
    node: SimpleNamespace, broken: str
) -> None:
    node.says.update(SendPaymentV2=[(UNKNOWN, broken)], TrackPaymentV2=NEVER_HEARD)
    with pytest.raises(NodeUnavailableError):
        await node.payer.pay(ORDER)


async def test_a_refusal_in_lnds_words_says_it(node: SimpleNamespace) -> None:
    node.says.update(SendPaymentV2=[(UNKNOWN, "invoice expired. Valid until 2026")], TrackPaymentV2=NEVER_HEARD)
    assert await node.payer.pay(ORDER) == NodeFailed(NodeFailure.ERROR)


async def test_a_refusal_that_lnd_knows_a_payment_for_is_no_failure(node: SimpleNamespace) -> None:
    node.says.update(
        SendPaymentV2=[(UNKNOWN, "invoice expired. Valid until 2026")],
        TrackPaymentV2=[lnrpc.Payment(status=lnrpc.Payment.IN_FLIGHT), for_ever],
    )
    assert await node.payer.pay(ORDER) == NodePending()


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.INTERNAL]
)
async def test_a_broken_way_is_no_answer(node: SimpleNamespace, code: grpc.StatusCode) -> None:
    node.says.update({method: [(code, "gone")] for method in ("SendPaymentV2", "TrackPaymentV2", "EstimateRouteFee")})
    for ask in (
        node.payer.pay(ORDER),
        node.payer.track(ORDER.payment_hash),
        node.payer.estimate(ORDER.payment_request, 1),
    ):
        with pytest.raises(NodeUnavailableError):
            await ask


async def test_known_and_then_gone_is_no_answer(node: SimpleNamespace) -> None:
    node.says.update(
        SendPaymentV2=[(grpc.StatusCode.ALREADY_EXISTS, "payment is in transition")], TrackPaymentV2=NEVER_HEARD
    )
    with pytest.raises(NodeUnavailableError):
        await node.payer.pay(ORDER)


async def test_a_stream_that_ends_early_is_no_answer(node: SimpleNamespace) -> None:
    node.says.update(SendPaymentV2=[], TrackPaymentV2=[])
    with pytest.raises(NodeUnavailableError):
        await node.payer.pay(ORDER)
    with pytest.raises(NodeUnavailableError):
        await node.payer.track(ORDER.payment_hash)
    node.says.update(SendPaymentV2=[lnrpc.Payment(status=lnrpc.Payment.IN_FLIGHT)])
    with pytest.raises(NodeUnavailableError):
        await node.payer.pay(ORDER)


async def test_only_a_payment_that_began_is_pending(node: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paying, "CALL_S", 0.3)
    monkeypatch.setattr(paying, "OUTCOME_S", 0.2)
    node.says.update(SendPaymentV2=[for_ever])
    with pytest.raises(NodeUnavailableError):
        await node.payer.pay(ORDER)
    node.says.update(SendPaymentV2=[lnrpc.Payment(status=lnrpc.Payment.INITIATED), for_ever])
    assert await node.payer.pay(ORDER) == NodePending()


async def test_only_not_found_says_that_lnd_never_heard_of_it(node: SimpleNamespace) -> None:
    node.says.update(TrackPaymentV2=NEVER_HEARD, LookupInvoiceV2=[(NOT_FOUND, "unable to locate invoice")])
    assert await node.payer.track(ORDER.payment_hash) == NodeUnknown()
    assert await node.receiver.lookup(ORDER.payment_hash) is None
    node.says.update(TrackPaymentV2=[(UNKNOWN, "not found")], LookupInvoiceV2=[(UNKNOWN, "not found")])
    with pytest.raises(NodeUnavailableError):
        await node.payer.track(ORDER.payment_hash)
    with pytest.raises(NodeUnavailableError):
        await node.receiver.lookup(ORDER.payment_hash)


async def test_a_settle_or_cancel_that_failed_while_money_is_held_is_no_answer(node: SimpleNamespace) -> None:
    failed = [(UNKNOWN, "database closed")]
    held = [HELD]
    node.says.update(SettleInvoice=failed, CancelInvoice=failed, LookupInvoiceV2=held)
    with pytest.raises(NodeUnavailableError):
        await node.receiver.settle(Bill().preimage)
    with pytest.raises(NodeUnavailableError):
        await node.receiver.cancel(Bill().payment_hash)


async def test_what_was_done_all_the_same_is_done(node: SimpleNamespace) -> None:
    failed = [(UNKNOWN, "database closed")]
    node.says.update(SettleInvoice=failed, LookupInvoiceV2=[invoice(lnrpc.Invoice.SETTLED)])
    await node.receiver.settle(Bill().preimage)
    node.says.update(CancelInvoice=failed, LookupInvoiceV2=[invoice(lnrpc.Invoice.CANCELED)])
    await node.receiver.cancel(Bill().payment_hash)


async def test_the_macaroon_is_sent_in_hex_and_not_shown(node: SimpleNamespace) -> None:
    node.says.update(LookupInvoiceV2=[(UNKNOWN, "permission denied")])
    with pytest.raises(NodeUnavailableError) as caught:
        await node.receiver.lookup(ORDER.payment_hash)
    assert node.speaker.macaroons == {MACAROON.hex()}
    assert MACAROON.hex() not in caught.exconly()


# ---- subscriptions that break

PENDING = lnrpc.Invoice(r_hash=HASH, add_index=3, state=lnrpc.Invoice.OPEN)


@pytest.mark.parametrize(
    "script",
    [
        {"SubscribeInvoices": [], "SubscribeSingleInvoice": [PENDING, for_ever]},
        {"SubscribeInvoices": [for_ever], "SubscribeSingleInvoice": [PENDING]},
        {"SubscribeInvoices": [for_ever], "SubscribeSingleInvoice": [(UNKNOWN, "unable to locate invoice")]},
        {"SubscribeInvoices": [for_ever], "SubscribeSingleInvoice": [invoice(9)]},
    ],
)
async def test_a_stream_that_ends_before_its_time_ends_the_subscription(
    node: SimpleNamespace, script: dict[str, Any]
) -> None:
    node.says.update(script, ListInvoices=[PENDING])
    with pytest.raises(NodeUnavailableError):
        await anext(node.receiver.subscribe())


async def test_on_a_node_without_invoices_the_first_one_is_waited_for(
    node: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription, "FIRST_INVOICE_S", 0.05)
    accepted = HELD
    node.says.update(ListInvoices=[], SubscribeInvoices=[for_ever], SubscribeSingleInvoice=[accepted, for_ever])
    changes = node.receiver.subscribe()
    waiting = asyncio.ensure_future(anext(changes))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    node.says["ListInvoices"] = [PENDING]
    assert (await asyncio.wait_for(waiting, 30)).state is ReceivedState.ACCEPTED
    await changes.aclose()


async def test_more_invoices_than_places_are_told_of_in_turn(
    node: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription, "WATCHES_MAX", 2)
    many = [lnrpc.Invoice(r_hash=bytes([at] * 32), add_index=at + 1) for at in range(7)]
    node.says.update(
        ListInvoices=many, SubscribeInvoices=[for_ever], SubscribeSingleInvoice=[invoice(lnrpc.Invoice.CANCELED)]
    )
    changes = node.receiver.subscribe()
    told = [await asyncio.wait_for(anext(changes), 30) for _ in many]
    assert {one.state for one in told} == {ReceivedState.CANCELED}
    await changes.aclose()


# ---- starting


def simnet() -> lnrpc.GetInfoResponse:
    return lnrpc.GetInfoResponse(chains=[lnrpc.Chain(network="simnet")], identity_pubkey=OWN_KEY)


def refusing() -> dict[str, list[Any]]:
    return {method: [(UNKNOWN, "nothing to do")] for method in ("SendPaymentV2", "TrackPaymentV2", "EstimateRouteFee")}


@pytest.mark.parametrize("words", ["waiting to start, RPC services not available", "wallet locked, unlock it to"])
async def test_a_node_that_starts_is_waited_for(node: SimpleNamespace, words: str) -> None:
    node.says.update(refusing(), GetInfo=[(UNKNOWN, words), (UNKNOWN, words), simnet()])
    payer = await open_paying_node(node.settings)
    assert payer.currency == "sb"
    await payer.close()
    node.says.update(GetInfo=[(UNKNOWN, words)])
    with pytest.raises(NodeUnavailableError, match=words[:10]):
        await open_paying_node(node.settings, patience_s=0.0)


@pytest.mark.parametrize("networks", [[], ["litecoin"], ["simnet", "mainnet"]])
async def test_an_unknown_network_stops_the_start(node: SimpleNamespace, networks: list[str]) -> None:
    chains = [lnrpc.Chain(network=network) for network in networks]
    node.says.update(refusing(), GetInfo=[lnrpc.GetInfoResponse(chains=chains)])
    with pytest.raises(StartError, match="known are mainnet"):
        await open_paying_node(node.settings)
