"""The connection to lnd, and what its errors mean.

lnd answers most refusals with the code UNKNOWN and a text, and gRPC uses that code for some broken connections, too. So a code alone never
says that nothing happened: LndRefusal is a hint, and each method of the adapters finds out what is true by another question.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import grpc

from services.chassis.client import CLIENT_OPTIONS
from services.chassis.errors import StartError
from services.chassis.secret import SecretBytes, load_secret
from services.lightning.lnd.settings import LndSettings
from services.lightning.lnd.wire.invoices_pb2_grpc import InvoicesStub
from services.lightning.lnd.wire.lightning_pb2 import GetInfoRequest, GetInfoResponse
from services.lightning.lnd.wire.lightning_pb2_grpc import LightningStub
from services.lightning.lnd.wire.router_pb2_grpc import RouterStub
from services.lightning.node import NodeUnavailableError

if TYPE_CHECKING:  # these classes are in the stubs' types only
    from services.lightning.lnd.wire.invoices_pb2_grpc import InvoicesAsyncStub
    from services.lightning.lnd.wire.lightning_pb2_grpc import LightningAsyncStub
    from services.lightning.lnd.wire.router_pb2_grpc import RouterAsyncStub

CALL_S: Final = 10.0
"""Deadline of every call that is not a stream, and of a stream's first message."""
RETRY_S: Final = 0.5
"""Pause before a node that is not ready is asked again."""
CURRENCIES: Final = {
    "mainnet": "bc",
    "testnet": "tb",
    "testnet4": "tb",
    "signet": "tbs",
    "regtest": "bcrt",
    "simnet": "sb",
}
"""BOLT11's currency of each network of lnd."""
REFUSALS: Final = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
    }
)
"""Codes with which lnd says no. Every other one is of the way to it."""
NOT_READY_WORDS: Final = ("waiting to start", "wallet locked", "wallet not created", "process of starting")
"""How lnd says that it does not serve yet."""
MACAROON_WORDS: Final = ("permission denied", "verification failed", "cannot get macaroon", "expected 1 macaroon")
"""How lnd words what it dislikes about a macaroon; it has no code for that."""

AnswerT = TypeVar("AnswerT")


class LndRefusal(Exception):  # noqa: N818  # what it is: lnd's no, which callers look into
    """Lnd, or something on the way to it, said no."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(f"{code.name}: {text}")
        self.code, self.text = code, text

    def says(self, *words: str) -> bool:
        """Whether lnd used one of these words."""
        return any(word in self.text.lower() for word in words)


class MacaroonRefusedError(NodeUnavailableError):
    """lnd does not accept the macaroon for this method: an operator's matter, which says nothing about invoices and payments."""


def translated(error: grpc.aio.AioRpcError) -> LndRefusal | NodeUnavailableError:
    """What an error of gRPC means."""
    refusal = LndRefusal(error.code(), error.details() or "")
    if refusal.says(*MACAROON_WORDS):
        return MacaroonRefusedError(refusal.text)
    if refusal.code in REFUSALS and not refusal.says(*NOT_READY_WORDS):
        return refusal
    return unavailable(refusal)


def unavailable(refusal: LndRefusal) -> NodeUnavailableError:
    """The error to raise when a refusal leaves open what is true."""
    return NodeUnavailableError(f"lnd: {refusal}")


async def answer(call: Awaitable[AnswerT]) -> AnswerT:
    """A call's answer. Raises LndRefusal and NodeUnavailableError."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise translated(error) from None


async def messages(stream: AsyncIterable[AnswerT]) -> AsyncIterator[AnswerT]:
    """A stream's messages. Raises LndRefusal and NodeUnavailableError."""
    try:
        async for message in stream:
            yield message
    except grpc.aio.AioRpcError as error:
        raise translated(error) from None


class LndConnection:
    """One HTTP/2 connection with the stubs of the APIs that are used; gRPC makes it anew when it breaks."""

    def __init__(self, settings: LndSettings) -> None:
        """Read the files. Raises StartError when they are not fit."""
        self.macaroon_path = settings.macaroon
        credentials = grpc.composite_channel_credentials(
            grpc.ssl_channel_credentials(root_certificates=_certificate(settings.tls_cert)),
            grpc.metadata_call_credentials(_Macaroon(load_secret(settings.macaroon))),
        )
        self._channel = grpc.aio.secure_channel(settings.address, credentials, options=CLIENT_OPTIONS)
        self.lightning: LightningAsyncStub = LightningStub(self._channel)
        self.invoices: InvoicesAsyncStub = InvoicesStub(self._channel)
        self.router: RouterAsyncStub = RouterStub(self._channel)

    async def info(self, patience_s: float) -> GetInfoResponse:
        """What the node says of itself; while it starts it is asked again for so long.

        Raises NodeUnavailableError, and StartError when the macaroon does not open it.
        """
        end = asyncio.get_running_loop().time() + patience_s
        while True:
            try:
                return await answer(self.lightning.GetInfo(GetInfoRequest(), timeout=CALL_S))
            except MacaroonRefusedError as error:
                raise self.macaroon_error(["/lnrpc.Lightning/GetInfo"], str(error)) from None
            except LndRefusal as refusal:
                raise unavailable(refusal) from None
            except NodeUnavailableError:
                if asyncio.get_running_loop().time() + RETRY_S > end:
                    raise
            await asyncio.sleep(RETRY_S)

    async def check_macaroon(self, **requests: Awaitable[object]) -> None:
        """Send requests that do nothing; raise StartError naming the methods (`__` for the slash) that the macaroon does not open."""
        refusals = await asyncio.gather(*(_macaroon_refusal(request) for request in requests.values()))
        denied = {name: text for name, text in zip(requests, refusals, strict=True) if text}
        if denied:
            methods = [f"/{name.replace('__', '.', 1).replace('__', '/')}" for name in denied]
            raise self.macaroon_error(methods, next(iter(denied.values())))

    def macaroon_error(self, methods: list[str], text: str) -> StartError:
        """The error for an operator whose macaroon is not enough."""
        wanted = " ".join(f"uri:{method}" for method in methods)
        return StartError(f"lnd does not accept {self.macaroon_path} ({text}); it must permit {wanted}")

    async def close(self) -> None:
        """Close the channel and end what runs on it."""
        await self._channel.close()


async def _macaroon_refusal(request: Awaitable[object]) -> str:
    """What lnd dislikes about the macaroon; empty: nothing, whatever else it says. Raises NodeUnavailableError."""
    try:
        await answer(request)
    except MacaroonRefusedError as error:
        return str(error)
    except LndRefusal:
        return ""
    return ""


def currency_of(info: GetInfoResponse) -> str:
    """BOLT11's currency of the node's network. Raises StartError for one that is not known."""
    networks = [chain.network for chain in info.chains]
    if len(networks) != 1 or networks[0] not in CURRENCIES:
        raise StartError(f"lnd follows {networks or 'no chain'}; known are {', '.join(CURRENCIES)}")
    return CURRENCIES[networks[0]]


def _certificate(path: Path) -> bytes:
    """Read lnd's certificate."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartError(f"cannot read lnd's certificate {path}: {error.strerror}") from error


class _Macaroon(grpc.AuthMetadataPlugin):
    """Gives the macaroon to each call; gRPC sends such credentials over TLS only."""

    def __init__(self, macaroon: SecretBytes) -> None:
        self._macaroon = macaroon

    def __call__(self, context: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback) -> None:
        """Hand it over, in hex as lnd wants it."""
        callback((("macaroon", self._macaroon.reveal().hex()),), None)
