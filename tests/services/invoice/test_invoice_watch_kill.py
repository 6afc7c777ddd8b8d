"""WatchInvoices over `kill -9`: replicas die in the middle of changes, and no watcher misses or repeats one."""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections.abc import Callable
from typing import Any

import grpc

from nipmesh.invoice.v1 import invoice_pb2, invoice_service_pb2_grpc
from nipmesh.invoice.v1 import invoice_service_pb2 as pb
from support.invoice_pair import AS_ALICE, Two

State = invoice_pb2.Invoice
INVOICES, WORKERS, KILLS = 24, 4, 3


class Follower:
    """Watches by turns at both replicas, resuming after the last sequence; `seen` is all that it was told."""

    def __init__(self, pair: Two, generator: random.Random) -> None:
        self._pair = pair
        self._generator = generator
        self.position = 0
        self.seen: list[pb.WatchInvoicesResponse] = []

    async def follow(self) -> None:
        while True:
            channel = self._generator.choice(self._pair.channels)
            stub = invoice_service_pb2_grpc.InvoiceServiceStub(channel)
            request = pb.WatchInvoicesRequest(resume_after_sequence=self.position)
            stream = stub.WatchInvoices(request, metadata=AS_ALICE, wait_for_ready=False)
            with contextlib.suppress(grpc.aio.AioRpcError, TimeoutError):
                await self._read(stream, self._generator.randint(1, 20))
            stream.cancel()
            await asyncio.sleep(0.01)

    async def _read(self, stream: Any, count: int) -> None:
        for _ in range(count):
            message = await asyncio.wait_for(stream.read(), 1)
            if message is grpc.aio.EOF:
                return
            assert message.sequence >= self.position
            self.position = message.sequence
            if message.HasField("invoice"):
                self.seen.append(message)


async def _life(pair: Two, kind: str) -> tuple[str, list[int]]:
    """One invoice from its beginning to its end; the states that a watcher must have been told of."""
    invoice = await pair.create(hold=None if kind.startswith("plain") else pb.HoldTerms())
    if kind.endswith("outside"):
        await pair.outside(invoice.payment_request)
    elif kind != "plain canceled":
        await pair.pay_inside(invoice)
    request_id = str(uuid.uuid4())
    if kind.startswith("hold"):
        await pair.until(invoice.invoice_id, lambda found: found.HasField("accept_time"))
        request = pb.SettleInvoiceRequest(request_id=request_id, invoice_id=invoice.invoice_id)
        await pair.invoices("SettleInvoice", request)
    if kind == "plain canceled":
        cancel = pb.CancelInvoiceRequest(request_id=request_id, invoice_id=invoice.invoice_id)
        await pair.invoices("CancelInvoice", cancel)
    await pair.until(invoice.invoice_id, lambda found: found.state > State.STATE_ACCEPTED)
    stories = {"plain canceled": [1, 4], "plain inside": [1, 2, 3], "plain outside": [1, 2, 3]}
    return invoice.invoice_id, stories.get(kind, [1, 2, 2, 3])


async def test_each_change_comes_once_over_kills_of_either_replica(two: Callable[..., Any]) -> None:
    generator = random.Random(5)
    kinds = ["plain canceled", "plain inside", "plain outside", "hold inside", "hold outside"]
    async with two() as pair:
        await pair.create()  # the first replica answers
        followers = [Follower(pair, random.Random(seed)) for seed in range(2)]
        following = [asyncio.create_task(follower.follow()) for follower in followers]
        lives = iter([kinds[at % len(kinds)] for at in range(INVOICES)])
        told: dict[str, list[int]] = {}

        async def work() -> None:
            for kind in lives:
                invoice_id, story = await _life(pair, kind)
                told[invoice_id] = story

        async def kill() -> None:
            for number in range(KILLS):
                while len(told) < (number + 1) * INVOICES // (KILLS + 2):
                    await asyncio.sleep(generator.uniform(0.01, 0.05))
                await pair.kill(number % 2)
                await pair.start(number % 2)

        await asyncio.wait_for(asyncio.gather(kill(), *(work() for _ in range(WORKERS))), 110)
        wanted = sum(len(story) for story in told.values()) + 1
        async with asyncio.timeout(60):
            while any(len(follower.seen) < wanted for follower in followers):
                await asyncio.sleep(0.05)
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
        for follower in followers:
            _check(follower, told)


def _check(follower: Follower, told: dict[str, list[int]]) -> None:
    """In order, nothing twice, nothing missing."""
    sequences = [message.sequence for message in follower.seen]
    assert sequences == sorted(set(sequences))
    stories: dict[str, list[int]] = {}
    for message in follower.seen:
        story = stories.setdefault(message.invoice.invoice_id, [])
        assert message.previous_state == (story[-1] if story else 0)
        story.append(message.invoice.state)
    assert {each: stories[each] for each in told} == told
    assert len(stories) == len(told) + 1
