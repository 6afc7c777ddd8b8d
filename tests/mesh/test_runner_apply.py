"""`nipmesh apply` on a running mesh under load: changes of every kind, good and bad. None may cost a call."""

import asyncio
import random
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import grpc.aio
import pytest

from mesh.apply_support import (
    EXTRA,
    LATER,
    SPARE,
    ChangingMesh,
    Watch,
    Wish,
    are_current,
    code_of,
    faulty_mesh,
    running_state,
)
from mesh.runner_support import RELAY

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(600)]
CHANGES = 100
SEED = 20_250
COSTLY = 2
"""Changes that restart programs or crash them, of each kind: seconds each."""


@pytest.fixture
async def changing(tmp_path: Path) -> AsyncIterator[ChangingMesh]:
    """A mesh whose publisher makes a mistake at two deadlines, which only running Envoys notice."""
    mesh = ChangingMesh(folder=tmp_path)
    mesh.write()
    async with faulty_mesh(mesh):
        traces = mesh.traces()
        yield mesh
    await asyncio.to_thread(traces.until_gone)


@dataclass(frozen=True, kw_only=True)
class Client:
    """Asks, always on the same connection, whether the mesh is what was wished."""

    mesh: ChangingMesh
    channel: grpc.aio.Channel

    async def check(self, wish: Wish) -> None:
        """Compare every permission with what the manifest says."""
        user, operator = self.mesh.token(), self.mesh.token("operator")
        shown = wish.is_spare_exposed
        expected = {
            "nobody": {"public": "OK"}.get(wish.spare, "UNAUTHENTICATED") if shown else "UNIMPLEMENTED",
            "user": {"operator": "PERMISSION_DENIED"}.get(wish.spare, "OK") if shown else "UNIMPLEMENTED",
            "operator": "OK" if shown else "UNIMPLEMENTED",
        }
        for who, metadata in {"nobody": (), "user": user, "operator": operator}.items():
            assert await code_of(self.channel, SPARE, metadata=metadata) == expected[who], (who, wish)
        once = await code_of(self.channel, RELAY, "once hi", user)
        assert once == ("OK" if wish.front_once else "PERMISSION_DENIED"), wish
        assert await code_of(self.channel, LATER, metadata=user) == ("OK" if wish.later else "UNIMPLEMENTED"), wish
        there = await code_of(self.channel, EXTRA, metadata=user)
        assert there == ("OK" if wish.extra_replicas else "UNIMPLEMENTED"), wish


GOOD: dict[str, Callable[[Wish, random.Random], Wish]] = {
    "deadline": lambda wish, dice: replace(wish, deadline=f"{dice.randint(4000, 7000)}ms"),
    "idle timeout": lambda wish, dice: replace(wish, idle_timeout=f"{dice.randint(60, 600)}s"),
    "call": lambda wish, _: replace(wish, front_once=not wish.front_once),
    "expose": lambda wish, _: replace(wish, is_spare_exposed=not wish.is_spare_exposed),
    "public": lambda wish, _: replace(
        wish, is_spare_exposed=True, spare="token" if wish.spare == "public" else "public"
    ),
    "role": lambda wish, _: replace(
        wish, is_spare_exposed=True, spare="token" if wish.spare == "operator" else "operator"
    ),
    "proto": lambda wish, _: replace(wish, later=not wish.later),
    "reflection": lambda wish, _: replace(wish, reflection=not wish.reflection),
    "service": lambda wish, _: replace(wish, extra_replicas=0 if wish.extra_replicas else 1),
    "edge": lambda wish, _: replace(wish, extra_replicas=1, front_calls_extra=not wish.front_calls_extra),
    "several": lambda wish, dice: replace(
        wish, deadline=f"{dice.randint(4000, 7000)}ms", later=not wish.later, front_once=not wish.front_once
    ),
    "echo replicas": lambda wish, _: replace(wish, echo_replicas=3 - wish.echo_replicas),
    "front replicas": lambda wish, _: replace(wish, front_replicas=3 - wish.front_replicas),
    "front env": lambda wish, dice: replace(wish, front_env=str(dice.random())),
    "echo env": lambda wish, dice: replace(wish, echo_env=str(dice.random())),
}
"""A change of each kind; every one of them changes something."""


def replaced(old: str, new: str) -> Callable[[str], str]:
    """Spoil a manifest in one place."""

    def spoil(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return spoil


def with_deadline(deadline: str) -> Callable[[str], str]:
    """Write one of the deadlines at which the publisher makes its mistake."""
    return lambda text: re.sub(r"deadline: \d+m?s", f"deadline: {deadline}", text)


BROKEN = "  broken:\n    run: python -c 'raise SystemExit(3)'\n    serves: [broken.v1.BrokenService]\n    replicas: 1\n"
EDGE = "  tls: {certificate: edge.crt, private_key: edge.key}\n"
BAD: dict[str, tuple[Callable[[str], str], str]] = {
    "yaml": (replaced("gateway:", "gateway: ["), "error[NM003]"),
    "key": (replaced("    replicas:", "    replica:"), "mesh.yaml:8:5: error[NM101]"),
    "method": (replaced("[EchoService/Say", "[EchoService/Sya"), "error[NM305] unknown method `EchoService/Sya`"),
    "duration": (replaced("idle_timeout: ", "idle_timeout: 5 parsecs #"), "mesh.yaml:"),
    "trust domain": (replaced("parlour.mesh", "other.mesh"), "mesh.yaml:2:15: error[NM801]"),
    "certificate": (replaced("  authentication:", f"{EDGE}  authentication:"), "error[NM606]"),
    "refused by the callee's Envoy": (with_deadline("7777ms"), "error[NM802] the Envoy of echo-"),
    "refused by a caller's Envoy": (with_deadline("3333ms"), "error[NM802] the Envoy of "),
    "crash": (replaced('env: {"FRONT": ', 'env: {"ECHO_CRASH": "1", "FRONT": '), "error[NM802] front-"),
    "crash of a new service": (
        replaced("gateway:", f"{BROKEN}gateway:"),
        "error[NM802] broken-0 does not become ready",
    ),
}
"""How a manifest is spoiled, and what the refusal says."""
EXPENSIVE = (
    "reflection",
    "echo env",
    "front env",
    "crash",
    "crash of a new service",
    "echo replicas",
    "front replicas",
)


def sequence(dice: random.Random, count: int) -> list[str]:
    """Choose kinds: each at least twice, the costly ones not more often than that, in random order."""
    cheap = [kind for kind in (*GOOD, *BAD) if kind not in EXPENSIVE]
    chosen = [kind for kind in EXPENSIVE for _ in range(COSTLY)]
    chosen += [cheap[index % len(cheap)] for index in range(count - len(chosen))]
    dice.shuffle(chosen)
    return chosen


async def change(client: Client, kind: str, dice: random.Random) -> None:
    """Make one change and look whether it is there, or, when it is a bad one, whether nothing is."""
    mesh = client.mesh
    if kind in GOOD:
        plan = await mesh.become(GOOD[kind](mesh.wish, dice))
        assert plan, kind
        assert are_current(await mesh.ask("status")), kind
    else:
        before = running_state(await mesh.ask("status"))
        spoil, words = BAD[kind]
        refusal = await mesh.refused(spoil(mesh.manifest.read_text()))
        assert words in refusal, refusal
        assert "mesh.yaml:" in refusal
        assert running_state(await mesh.ask("status")) == before, kind
    await client.check(mesh.wish)


async def test_a_hundred_changes_good_and_bad_cost_no_call(changing: ChangingMesh) -> None:
    dice = random.Random(SEED)
    for name in ("edge.crt", "edge.key"):
        (changing.folder / name).write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
        (changing.folder / name).chmod(0o600)
    kinds = sequence(dice, CHANGES)
    took: Counter[str] = Counter()
    async with Watch(mesh=changing) as watch, changing.channel() as channel:
        client = Client(mesh=changing, channel=channel)
        for kind in kinds:
            started = time.monotonic()
            await change(client, kind, dice)
            took[kind] += round((time.monotonic() - started) * 1000)
            assert not watch.failed, (kind, watch.failed)
    assert watch.failed == []
    assert watch.answered > 20 * CHANGES
    assert watch.messages > 20 * CHANGES
    counts = Counter(kinds)
    print(f"{CHANGES} changes, {watch.answered} calls, {watch.messages} messages, {watch.ended} streams ended in order")
    print("\n".join(f"{kind:24} {counts[kind]:3} x {took[kind] / counts[kind]:6.0f} ms" for kind in sorted(counts)))


async def test_a_service_on_a_port_that_a_sidecar_was_given_is_refused(changing: ChangingMesh) -> None:
    """The manifest named it only afterwards; the program would not start, and nobody would know why."""
    before = running_state(await changing.ask("status"))
    document = await changing.ask("status")
    given = document["services"]["echo"]["replicas"][0]["inbound"]
    service = f"  late:\n    run: python -m late\n    version_of: echo\n    replicas: 1\n    listen: {given}\n"
    refusal = await changing.refused(replaced("gateway:", f"{service}gateway:")(changing.manifest.read_text()))
    assert f"a running mesh cannot change to a service on port {given.rpartition(':')[2]}" in refusal, refusal
    assert "error[NM801]" in refusal
    assert running_state(await changing.ask("status")) == before
