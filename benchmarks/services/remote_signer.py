"""NIP-46 end to end: sign_event by an app over a relay, against the relay's own limit, by turns in one run.

`nip46_echo` is the same number of events of the same kind through the same relay, made before and answered by one that only sends: what is
left when the signer costs nothing. The service runs as one process on SQLite, the relay (nostr-sdk's LocalRelay) as another; the app and
the other side of the echo are this process. Both use `services.relays`, which verifies each event.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import grpc.aio
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from benchmarks.figures import Figures, cpu_seconds, median_ratio
from nipmesh.nip.v1 import nip_service_pb2 as nip_pb
from nipmesh.nip.v1 import nip_service_pb2_grpc as nip_grpc
from nipmesh.nip.v1 import remote_signer_pb2 as words
from nipmesh.nip.v1 import remote_signer_service_pb2 as pb
from nipmesh.nip.v1 import remote_signer_service_pb2_grpc as pb_grpc
from services.chassis.secret import SecretBytes
from services.chassis.testing import as_user
from services.nip.domain import nip44
from services.nostr.bip340 import Signer
from services.nostr.event import Event, Template, sign_event
from services.relays import Filter, RelayOptions, RelayPool, Subscription

REQUESTS: Final = 1_000
"""Of one round."""
CALLERS: Final = 64
"""Requests that wait at once."""
ANSWER_S_MAX: Final = 60
KIND: Final = 24_133
ROOT: Final = Path(__file__).resolve().parents[2]
OPTIONS: Final = RelayOptions(private_allowed=True, queue_events_max=10 * REQUESTS)


@dataclass(slots=True)
class Party:
    """A key, and what was agreed on with the other side."""

    secret: SecretBytes = field(default_factory=lambda: SecretBytes(secrets.token_bytes(32)))

    @property
    def pubkey(self) -> str:
        """In hex."""
        return Signer(self.secret).public_key.hex()

    def event(self, to: str, content: str) -> Event:
        """A signed event for the other side."""
        now = int(time.time())
        template = Template(kind=KIND, tags=(("p", to),), content=content, created_at=now)
        return sign_event(Signer(self.secret), template, created_at=now, auxiliary_key=secrets.token_bytes(32))

    def request(self, to: str, key: SecretBytes, *members: Any) -> tuple[str, Event]:
        """An encrypted request of NIP-46, and its id."""
        name = secrets.token_hex(8)
        method, *params = members
        text = json.dumps({"id": name, "method": method, "params": params})
        return name, self.event(to, nip44.encrypt(text, key))


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """What runs beside this process."""

    relay: str
    relay_pid: int
    nip_pid: int
    socket: str


def measure(*, rounds: int, requests: int = REQUESTS) -> Figures:
    """Rates, their ratio, and what a signature costs the service and the relay in processor time."""
    return asyncio.run(_measure(rounds, requests))


async def _measure(rounds: int, requests: int) -> Figures:
    found: dict[str, list[float]] = {"sign": [], "echo": [], "nip": [], "relay": []}
    async with AsyncExitStack() as stack:
        beside = await stack.enter_async_context(_processes())
        pools = [await stack.enter_async_context(RelayPool(OPTIONS)) for _ in range(4)]
        sign = await _signing(stack, beside, *pools[:2])
        echo = await _echoing(stack, beside, *pools)
        for number in range(rounds + 1):
            before = cpu_seconds(beside.nip_pid), cpu_seconds(beside.relay_pid)
            sign_rate = await sign(requests)
            after = cpu_seconds(beside.nip_pid), cpu_seconds(beside.relay_pid)
            echo_rate = await echo(requests)
            if number:
                found["sign"].append(sign_rate)
                found["echo"].append(echo_rate)
                found["nip"].append((after[0] - before[0]) / requests * 1e3)
                found["relay"].append((after[1] - before[1]) / requests * 1e3)
    return {
        "nip46_sign_per_s": statistics.median(found["sign"]),
        "nip46_echo_per_s": statistics.median(found["echo"]),
        "nip46_sign_to_echo": median_ratio(found["sign"], found["echo"]),
        "nip46_sign_cpu_ms_of_nip": statistics.median(found["nip"]),
        "nip46_sign_cpu_ms_of_relay": statistics.median(found["relay"]),
    }


Round = Callable[[int], Awaitable[float]]
"""Does so many requests; returns how many a second."""


async def _signing(stack: AsyncExitStack, beside: Processes, sending: RelayPool, listening: RelayPool) -> Round:
    """An app that has connected, with a socket for each direction, as the signer has."""
    channel = await stack.enter_async_context(grpc.aio.insecure_channel(beside.socket))
    await asyncio.wait_for(channel.channel_ready(), ANSWER_S_MAX)
    uri = urlsplit(await _bunker_uri(channel))
    signer, secret = uri.netloc, parse_qs(uri.query)["secret"][0]
    app = Party()
    key = nip44.conversation_key(app.secret, signer)
    subscription = listening.subscribe([beside.relay], [Filter(kinds=(KIND,), tags={"p": (app.pubkey,)})])
    await subscription.following(ANSWER_S_MAX)

    def name_of(event: Event) -> str:
        message = json.loads(nip44.decrypt(event.content, key))
        assert "error" not in message, message
        return str(message["id"])

    async def several(made: list[tuple[str, Event]]) -> float:
        return await _answered(sending, beside.relay, subscription, made, name_of)

    await several([app.request(signer, key, "connect", signer, secret)])
    note = json.dumps({"kind": 1, "content": "a short note", "tags": [], "created_at": int(time.time())})
    return lambda count: several([app.request(signer, key, "sign_event", note) for _ in range(count)])


async def _echoing(
    stack: AsyncExitStack,
    beside: Processes,
    pool: RelayPool,
    listening: RelayPool,
    other_pool: RelayPool,
    other_listening: RelayPool,
) -> Round:
    """One that asks and one that sends what was made before, each as large as a signature and its request."""
    asking, answering = Party(), Party()
    size = len(nip44.encrypt("x" * 400, SecretBytes(bytes(32))))
    there = other_listening.subscribe([beside.relay], [Filter(kinds=(KIND,), tags={"p": (answering.pubkey,)})])
    here = listening.subscribe([beside.relay], [Filter(kinds=(KIND,), tags={"p": (asking.pubkey,)})])
    await asyncio.gather(there.following(ANSWER_S_MAX), here.following(ANSWER_S_MAX))
    made: dict[str, Event] = {}
    sending: set[asyncio.Task[Any]] = set()

    async def answer() -> None:
        async for _, event in there:
            task = asyncio.create_task(_send(other_pool, made[event.content.strip()], beside.relay))
            sending.add(task)
            task.add_done_callback(sending.discard)

    task = asyncio.create_task(answer())
    stack.callback(task.cancel)

    async def several(count: int) -> float:
        names = [secrets.token_hex(8) for _ in range(count)]
        made.update({name: answering.event(asking.pubkey, name.ljust(size)) for name in names})
        asked = [(name, asking.event(answering.pubkey, name.ljust(size))) for name in names]
        return await _answered(pool, beside.relay, here, asked, lambda event: event.content.strip())

    return several


async def _answered(
    pool: RelayPool,
    relay: str,
    subscription: Subscription,
    made: list[tuple[str, Event]],
    name_of: Callable[[Event], str],
) -> float:
    """Send events, CALLERS at a time, each until it is answered; return how many a second."""
    waiting = {name: asyncio.get_running_loop().create_future() for name, _ in made}

    async def listen() -> None:
        async for _, event in subscription:
            future = waiting.get(name_of(event))
            if future is not None and not future.done():
                future.set_result(None)

    left = iter(made)

    async def ask() -> None:
        for name, event in left:
            await _send(pool, event, relay)
            await asyncio.wait_for(waiting[name], ANSWER_S_MAX)

    listening = asyncio.create_task(listen())
    start = time.perf_counter()
    try:
        await asyncio.gather(*(ask() for _ in range(CALLERS)))
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
    return len(made) / (time.perf_counter() - start)


async def _send(pool: RelayPool, event: Event, relay: str) -> None:
    (outcome,) = (await pool.publish(event, [relay], timeout_s=ANSWER_S_MAX)).values()
    assert outcome.arrived, outcome


async def _bunker_uri(channel: grpc.aio.Channel) -> str:
    """A connection to a fresh key that may sign anything."""
    metadata = as_user(Party().pubkey)
    made = await nip_grpc.NipServiceStub(channel).CreateKey(
        nip_pb.CreateKeyRequest(request_id=str(uuid.uuid4()), fresh=True), metadata=metadata
    )
    permission = words.RemoteSignerPermission(
        method=words.REMOTE_SIGNER_METHOD_SIGN_EVENT, effect=words.RemoteSignerPermission.EFFECT_ALLOW
    )
    request = pb.CreateBunkerConnectionRequest(
        request_id=str(uuid.uuid4()), key_id=made.key.key_id, permissions=[permission]
    )
    stub = pb_grpc.RemoteSignerServiceStub(channel)
    return str((await stub.CreateBunkerConnection(request, metadata=metadata)).bunker_uri)


@asynccontextmanager
async def _processes() -> AsyncIterator[Processes]:
    """A relay and the NIP service, ended afterwards."""
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="nipmesh-nip46-") as name:
        folder = Path(name)
        environment = _environment(folder, f"ws://127.0.0.1:{port}")
        relay = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.services.relay", str(port), stdout=asyncio.subprocess.PIPE, cwd=ROOT
        )
        nip = await asyncio.create_subprocess_exec(sys.executable, "-m", "services.nip", env=environment, cwd=ROOT)
        try:
            assert relay.stdout is not None, "a pipe"
            assert await relay.stdout.readline() == b"ready\n", "the relay did not start"
            yield Processes(
                relay=f"ws://127.0.0.1:{port}",
                relay_pid=relay.pid,
                nip_pid=nip.pid,
                socket=f"unix:{folder}/run/app.sock",
            )
        finally:
            for process in (nip, relay):
                process.kill()
                await process.communicate()


def _environment(folder: Path, relay: str) -> dict[str, str]:
    """What the service is told; its secrets are made here."""
    private_key = ec.generate_private_key(ec.SECP256R1())
    (folder / "token.pem").write_bytes(private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / "keystore.key").write_bytes(secrets.token_bytes(32))
    for name in ("token.pem", "keystore.key"):
        (folder / name).chmod(0o600)
    return {
        **os.environ,
        "NIPMESH_SERVICE": "nip",
        "NIPMESH_LISTEN": f"unix:{folder}/run/app.sock",
        "NIPMESH_DATA_DIRECTORY": str(folder / "data"),
        "NIPMESH_TOKEN_KEY_FILE": str(folder / "token.pem"),
        "NIPMESH_TOKEN_ISSUER": "spiffe://nip.mesh/service/nip",
        "NIPMESH_TOKEN_AUDIENCE": "nip",
        "NIP_KEYSTORE_KEY_FILE": str(folder / "keystore.key"),
        "NIPMESH_SIGNER_RELAYS": relay,
        "NIPMESH_SIGNER_REQUESTS_PER_SECOND": "100000",
        "NIPMESH_LOG_LEVEL": "warning",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
