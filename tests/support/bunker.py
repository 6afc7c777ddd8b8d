"""Apps that sign from afar (NIP-46), without the services' own code: messages by hand, encrypted by nostr-sdk, over one WebSocket each."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import nostr_sdk
from websockets.asyncio.client import ClientConnection, connect

from support.nostr import User

KIND = 24133
CLOSE_S = 0.5
"""A relay does not always say goodbye."""
_ids = itertools.count(1)


def request_id() -> str:
    """A fresh request_id for a call."""
    return str(uuid.uuid4())


@dataclass(frozen=True, slots=True, kw_only=True)
class BunkerUri:
    """What stands in a bunker:// URI."""

    signer_pubkey: str
    relays: list[str]
    secret: str

    @classmethod
    def read(cls, uri: str) -> BunkerUri:
        parts = urlsplit(uri)
        assert parts.scheme == "bunker"
        fields = parse_qs(parts.query)
        return cls(signer_pubkey=parts.netloc, relays=fields["relay"], secret=fields["secret"][0])


@dataclass(slots=True)
class App:
    """One app: its key, a socket for each direction (LocalRelay forgets events when one is used for both), and all answers that came."""

    sending: ClientConnection
    websocket: ClientConnection
    signer_pubkey: str
    user: User = field(default_factory=User)
    answers: list[dict[str, Any]] = field(default_factory=list)
    event_ids: set[str] = field(default_factory=set)
    events_of: dict[str, set[str]] = field(default_factory=dict)
    """The ids of the events that answered a request."""
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def secret(self) -> Any:
        return nostr_sdk.SecretKey.parse(self.user.private_key.to_hex())

    def encrypted(self, text: str) -> str:
        peer = nostr_sdk.PublicKey.parse(self.signer_pubkey)
        return str(nostr_sdk.nip44_encrypt(self.secret, peer, text, nostr_sdk.Nip44Version.V2))

    def event_of(self, text: str, **changes: Any) -> dict[str, Any]:
        """The event that carries a text to the signer."""
        return self.user.event(KIND, [["p", self.signer_pubkey]], content=self.encrypted(text), **changes)

    async def publish(self, event: dict[str, Any]) -> None:
        await self.sending.send(json.dumps(["EVENT", event]))

    async def ask(self, method: str, *params: Any, identifier: str = "") -> str:
        """Send a request; its id."""
        identifier = identifier or f"r{next(_ids)}"
        await self.publish(self.event_of(json.dumps({"id": identifier, "method": method, "params": list(params)})))
        return identifier

    async def answer(self, identifier: str, count: int = 1, timeout_s: float = 10.0) -> dict[str, Any]:
        """The `count`-th answer to a request; different events count, the same one twice does not."""
        async with asyncio.timeout(timeout_s):
            while len(found := self.answers_to(identifier)) < count:
                self.arrived.clear()
                await self.arrived.wait()
        return found[count - 1]

    def answers_to(self, identifier: str) -> list[dict[str, Any]]:
        return [one for one in self.answers if one.get("id") == identifier]

    async def call(self, method: str, *params: Any, identifier: str = "", timeout_s: float = 10.0) -> dict[str, Any]:
        return await self.answer(await self.ask(method, *params, identifier=identifier), timeout_s=timeout_s)

    async def sign(self, kind: int = 1, content: str = "hello", **more: Any) -> dict[str, Any]:
        template = {"kind": kind, "content": content, "tags": [], "created_at": int(time.time())}
        return await self.call("sign_event", json.dumps(template), **more)

    async def silent(self, identifier: str, wait_s: float = 0.4) -> bool:
        """Whether nothing is answered."""
        await asyncio.sleep(wait_s)
        return not self.answers_to(identifier)

    async def _listen(self) -> None:
        peer = nostr_sdk.PublicKey.parse(self.signer_pubkey)
        async for text in self.websocket:
            kind, *rest = json.loads(text)
            if kind != "EVENT" or rest[1]["id"] in self.event_ids:
                continue
            event = rest[1]
            assert nostr_sdk.Event.from_json(json.dumps(event)).verify()
            assert event["pubkey"] == self.signer_pubkey
            self.event_ids.add(event["id"])
            message = json.loads(nostr_sdk.nip44_decrypt(self.secret, peer, event["content"]))
            assert all(isinstance(value, str) for value in message.values()), message
            assert message.get("result") != ""
            self.answers.append(message)
            self.events_of.setdefault(message["id"], set()).add(event["id"])
            self.arrived.set()


@contextlib.asynccontextmanager
async def running_app(relay: str, signer_pubkey: str, user: User | None = None) -> AsyncIterator[App]:
    """An app that listens for answers at a relay."""
    options: dict[str, Any] = {"compression": None, "close_timeout": CLOSE_S}
    async with connect(relay, **options) as sending, connect(relay, **options) as websocket:
        app = App(sending, websocket, signer_pubkey, user or User())
        await websocket.send(json.dumps(["REQ", "answers", {"kinds": [KIND], "#p": [app.user.pubkey]}]))
        while json.loads(await websocket.recv())[0] != "EOSE":
            pass
        listening = asyncio.create_task(app._listen())
        try:
            yield app
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)


async def connected_app(stack: contextlib.AsyncExitStack, uri: str, **more: Any) -> App:
    """An app that has used a bunker:// URI."""
    bunker = BunkerUri.read(uri)
    app = await stack.enter_async_context(running_app(bunker.relays[0], bunker.signer_pubkey, **more))
    assert await app.call("connect", bunker.signer_pubkey, bunker.secret) == {
        "id": app.answers[-1]["id"],
        "result": "ack",
    }
    return app
