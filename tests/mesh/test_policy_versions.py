"""Versions of a service: which calls they get, as whom they act, and that copies disturb nobody."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from support.changing import (
    NEVER,
    ONCE,
    SAY,
    WATCH,
    ChangingEnvoys,
    assert_shares,
    first,
    manifest,
    named,
    tally,
    where,
)
from support.envoys import call, failure

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]
DEEP = "/echo.v1.DeepService/Say"
CANARY = {"headers": {"x-canary": "always"}, "to": "echo-next"}


def versioned(routing: dict[str, Any], **methods: Any) -> str:
    """Two replicas of echo, two of echo-next and one of echo-old; echo calls front."""
    versions = {
        "echo-next": {"run": "true", "version_of": "echo", "replicas": 2},
        "echo-old": {"run": "true", "version_of": "echo", "replicas": 1},
    }
    traffic = {"routing": routing, "outlier_detection": NEVER, **({"methods": methods} if methods else {})}
    echo = {"replicas": 2, "calls": {"front": ["DeepService/Say"]}, "traffic": traffic}
    return manifest(echo, services=versions)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def envoys(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ChangingEnvoys]:
    running = ChangingEnvoys(tmp_path_factory.mktemp("versions"), versioned({"split": {"echo": 1}}))
    try:
        await running.start()
        yield running
    finally:
        await running.stop()


def by_version(found: Counter[str]) -> Counter[str]:
    """The replicas' counts, added up."""
    versions: Counter[str] = Counter()
    for name, count in found.items():
        versions[name.rpartition("-")[0]] += count
    return versions


@pytest.mark.parametrize("caller", ["front-0", "gateway"])
async def test_a_split_gives_each_version_its_share(envoys: ChangingEnvoys, caller: str) -> None:
    await envoys.change(versioned({"split": {"echo": 60, "echo-next": 30, "echo-old": 10}}))
    shares = {"echo": 60, "echo-next": 30, "echo-old": 10}
    async with envoys.channel(caller) as channel:
        found = await tally(channel, 500)
        assert_shares(by_version(found), shares)
        assert set(found) == {"echo-0", "echo-1", "echo-next-0", "echo-next-1", "echo-old-0"}
        assert_shares(by_version(await tally(channel, 200, method="EchoService/Once")), shares)
        streams = Counter([await first(channel) for _ in range(100)])
        assert_shares(by_version(streams), shares)


async def test_a_version_without_weight_gets_no_call(envoys: ChangingEnvoys) -> None:
    await envoys.change(versioned({"split": {"echo": 0, "echo-next": 7}}))
    async with envoys.channel("front-0") as front:
        assert set(await tally(front, 60)) == {"echo-next-0", "echo-next-1"}


async def test_a_version_without_replicas_costs_no_call(envoys: ChangingEnvoys) -> None:
    """Its share goes to the others until one of its replicas is in rotation again."""
    await envoys.change(versioned({"split": {"echo": 50, "echo-old": 50}}))
    async with envoys.channel("front-0") as front:
        await envoys.bring("echo-old-0", into=False)
        assert set(await tally(front, 60, method="EchoService/Once")) == {"echo-0", "echo-1"}
        await envoys.bring("echo-old-0", into=True)
        assert "echo-old-0" in await tally(front, 60, method="EchoService/Once")


@pytest.mark.parametrize("caller", ["front-0", "gateway"])
async def test_a_header_decides_before_the_split(envoys: ChangingEnvoys, caller: str) -> None:
    """Both headers of a rule must be there, and the first rule that fits wins."""
    rules = [{"headers": {"x-canary": "always", "x-age": "old"}, "to": "echo-old"}, CANARY]
    await envoys.change(versioned({"match": rules, "split": {"echo": 1}}))
    canary, old = ("x-canary", "always"), ("x-age", "old")
    async with envoys.channel(caller) as channel:
        assert set(by_version(await tally(channel, 20, metadata=(canary,)))) == {"echo-next"}
        assert set(by_version(await tally(channel, 20, metadata=(canary, old)))) == {"echo-old"}
        assert (await first(channel, metadata=(canary,))).startswith("echo-next")
        for others in ((), (old,), (("x-canary", "never"),), (("x-canary", "always and more"),)):
            assert set(by_version(await tally(channel, 20, metadata=others))) == {"echo"}, others


async def test_methods_are_routed_each_on_its_own(envoys: ChangingEnvoys) -> None:
    once = {"routing": {"split": {"echo-old": 1}}}
    await envoys.change(versioned({"split": {"echo-next": 1}}, **{"EchoService/Once": once}))
    async with envoys.channel("front-0") as front:
        assert set(by_version(await tally(front, 20))) == {"echo-next"}
        assert set(by_version(await tally(front, 20, method="EchoService/Once"))) == {"echo-old"}


async def test_a_version_acts_as_its_service(envoys: ChangingEnvoys) -> None:
    """It calls what its service calls, under its service's name, and nothing else."""
    await envoys.change(versioned({"split": {"echo-next": 1}}))
    envoys.applications["front-0"].handlers[DEEP] = named("front")
    async with envoys.channel("echo-next-0") as version:
        assert await where(version, "DeepService/Say") == "front"
        error = await failure(version, "EchoService/Once")
        assert (error.code(), error.details()) == (
            grpc.StatusCode.PERMISSION_DENIED,
            "the manifest does not allow echo-next to call this method",
        )
    _, metadata = envoys.applications["front-0"].seen[-1]
    assert metadata["x-forwarded-client-cert"].endswith("URI=spiffe://test.mesh/service/echo")


def copies(envoys: ChangingEnvoys, path: str) -> int:
    return sum(count for name, count in envoys.counts(path).items() if name.startswith("echo-next"))


async def fail(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
    await context.abort(grpc.StatusCode.INTERNAL, "the copy fails")
    return b""


async def hang(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
    await asyncio.sleep(20)
    return request


@pytest.mark.parametrize("caller", ["front-0", "gateway"])
@pytest.mark.parametrize("copy", [fail, hang])
async def test_a_copy_changes_nothing_for_the_caller(envoys: ChangingEnvoys, caller: str, copy: Any) -> None:
    await envoys.change(versioned({"mirror": {"to": "echo-next"}}))
    for name in ("echo-next-0", "echo-next-1"):
        envoys.applications[name].handlers[SAY] = copy
    async with envoys.channel(caller) as channel:
        assert set(by_version(await tally(channel, 60, timeout=5))) == {"echo"}
    await envoys.until(lambda: copies(envoys, SAY) == 60, "not every call was copied")


async def test_only_unary_calls_without_side_effects_are_copied(envoys: ChangingEnvoys) -> None:
    await envoys.change(versioned({"mirror": {"to": "echo-next"}}))
    async with envoys.channel("front-0") as front:
        await tally(front, 30, method="EchoService/Once")
        for _ in range(5):
            await first(front)
        await call(front, "EchoService/Say")
    await envoys.until(lambda: copies(envoys, SAY) == 1, "no copy at all")
    assert (copies(envoys, ONCE), copies(envoys, WATCH)) == (0, 0)
    assert sum(envoys.counts(ONCE).values()) == 30


async def test_copies_come_at_their_rate_and_die_with_the_version(envoys: ChangingEnvoys) -> None:
    await envoys.change(versioned({"mirror": {"to": "echo-next", "percent": 30}}))
    async with envoys.channel("front-0") as front:
        await tally(front, 300)
        copied = copies(envoys, SAY)
        assert_shares(Counter(copied=copied, alone=300 - copied), {"copied": 30, "alone": 70})
        await envoys.stop_applications("echo-next-0", "echo-next-1", caller="front-0")
        assert sum((await tally(front, 60)).values()) == 60
