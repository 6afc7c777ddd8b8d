"""The simulated nodes on their file: replicas that share it, deaths, people outside, faults by profile."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from services.chassis.secret import SecretBytes
from services.lightning.bolt11 import decode, encode
from services.lightning.node import (
    NodeFailed,
    NodeFailure,
    NodePaid,
    NodePending,
    NodeRefusedError,
    NodeUnavailableError,
    NodeUnknown,
    PaymentOrder,
    Received,
    ReceivedState,
)
from services.lightning.node_key import NodeKey
from services.lightning.simulated import Behaviour, Outsider, SimulatedPayingNode, SimulatedReceivingNode, profile_of
from services.lightning.simulated.node_file import FILE_NAME
from support.lightning import foreign_payment_request
from support.mesh import REPOSITORY
from support.node_contract import AMOUNT_MSAT, Bill, pay_through, payment_of, until

KEY = NodeKey(SecretBytes(b"\x07" * 32))


class Clock:
    def __init__(self) -> None:
        self.now_ms = time.time_ns() // 1_000_000

    def __call__(self) -> int:
        return self.now_ms


def foreign(description: str = "", amount_msat: int = 100_000, **changes: int) -> PaymentOrder:
    return payment_of(
        foreign_payment_request(amount_msat=amount_msat, description=description or "tea"), amount_msat, **changes
    )


async def test_a_stranger_is_paid_without_a_preimage_and_with_the_friendly_fee(tmp_path: Path) -> None:
    payer = await SimulatedPayingNode.open(tmp_path)
    order = foreign()
    assert await payer.pay(order) == NodePaid("", 1_100)
    assert await payer.pay(order) == NodePaid("", 1_100)
    await payer.close()
    other = await SimulatedPayingNode.open(tmp_path)
    assert await other.track(order.payment_hash) == NodePaid("", 1_100)
    assert (await other.estimate(order.payment_request, 100_000)).fee_msat == 1_100
    await other.close()


@pytest.mark.parametrize("currency", ["bc", "tb", "tbs", "sb"])
async def test_real_invoices_never_look_paid(tmp_path: Path, currency: str) -> None:
    payer = await SimulatedPayingNode.open(tmp_path)
    order = foreign()
    request = replace(decode(order.payment_request), currency=currency, payee_pubkey=KEY.public_key)
    real = replace(order, payment_request=encode(request, KEY))
    assert await payer.pay(real) == NodeFailed(NodeFailure.ERROR)
    assert await payer.track(real.payment_hash) == NodeUnknown()
    with pytest.raises(NodeRefusedError):
        await payer.estimate(real.payment_request, 1)
    await payer.close()


async def test_an_order_that_does_not_fit_its_request_is_refused(tmp_path: Path) -> None:
    payer = await SimulatedPayingNode.open(tmp_path)
    order = foreign()
    for changes in (
        {"payment_hash": "ab" * 32},
        {"amount_msat": 1},
        {"amount_is_open": True},
        {"payment_request": "x"},
    ):
        assert await payer.pay(replace(order, **changes)) == NodeFailed(NodeFailure.ERROR)  # type: ignore[arg-type]
    assert await payer.track(order.payment_hash) == NodeUnknown()
    await payer.close()


async def test_an_expired_request_is_not_paid_but_what_was_paid_stays_paid(tmp_path: Path) -> None:
    clock = Clock()
    payer = await SimulatedPayingNode.open(tmp_path, clock=clock)
    paid, late = foreign(), foreign()
    assert await payer.pay(paid) == NodePaid("", 1_100)
    clock.now_ms += 4_000_000
    assert await payer.pay(late) == NodeFailed(NodeFailure.ERROR)
    assert await payer.track(late.payment_hash) == NodeUnknown()
    assert await payer.pay(paid) == NodePaid("", 1_100)
    await payer.close()


async def test_words_and_rulings_decide(tmp_path: Path) -> None:
    payer, outsider = await SimulatedPayingNode.open(tmp_path), await Outsider.open(tmp_path)
    failing, hanging, ruled = foreign("simulated:fail"), foreign("simulated:hang"), foreign()
    assert await payer.pay(failing) == NodeFailed(NodeFailure.NO_ROUTE)
    assert await payer.pay(hanging) == NodePending()
    assert await payer.track(hanging.payment_hash) == NodePending()
    await outsider.rule(hanging.payment_hash, Behaviour.PAY)
    assert await payer.track(hanging.payment_hash) == NodePaid("", 1_100)
    await outsider.rule(ruled.payment_hash, Behaviour.HANG)
    assert await payer.pay(ruled) == NodePending()
    await outsider.rule(ruled.payment_hash, Behaviour.FAIL)
    assert await payer.pay(ruled) == NodeFailed(NodeFailure.NO_ROUTE), "a new attempt, under the same ruling"
    for node in (payer, outsider):
        await node.close()


async def test_a_delay_is_waited_for_by_nobody(tmp_path: Path) -> None:
    clock = Clock()
    payer = await SimulatedPayingNode.open(tmp_path, clock=clock)
    order = foreign("simulated:delay=1500")
    assert await payer.pay(order) == NodePending()
    clock.now_ms += 1_499
    assert await payer.track(order.payment_hash) == NodePending()
    clock.now_ms += 1
    assert await payer.track(order.payment_hash) == NodePaid("", 1_100)
    await payer.close()


async def test_a_lost_answer_is_found_again(tmp_path: Path) -> None:
    payer = await SimulatedPayingNode.open(tmp_path, profile_of("lost=1"))
    order = foreign()
    with pytest.raises(NodeUnavailableError):
        await payer.pay(order)
    assert await payer.track(order.payment_hash) == NodePaid("", 1_100)
    assert await payer.pay(order) == NodePaid("", 1_100)
    await payer.close()


async def test_a_node_is_down_for_a_while(tmp_path: Path) -> None:
    clock = Clock()
    clock.now_ms -= clock.now_ms % 2_000  # two whole periods follow
    payer = await SimulatedPayingNode.open(tmp_path, profile_of("down_ms=500,down_every_ms=2000"), clock)
    down_ms = 0
    for _ in range(400):
        clock.now_ms += 10
        try:
            assert await payer.track("ab" * 32) == NodeUnknown()
        except NodeUnavailableError:
            down_ms += 10
    assert 900 <= down_ms <= 1_100
    await payer.close()


async def test_somebody_outside_pays_and_the_replicas_know(tmp_path: Path) -> None:
    one, other = [await SimulatedReceivingNode.open(tmp_path, KEY) for _ in range(2)]
    bill = Bill()
    text = await one.add_invoice(bill.order())
    assert decode(text).payee_pubkey == KEY.public_key
    stream = other.subscribe()
    told = asyncio.ensure_future(anext(stream))
    accepted = await one.pay_from_outside(text)
    assert (accepted.state, accepted.amount_msat) == (ReceivedState.ACCEPTED, AMOUNT_MSAT)
    assert accepted.settle_deadline_ms is not None
    assert accepted.settle_deadline_ms > time.time() * 1_000 + 3_600_000
    assert await asyncio.wait_for(told, 30) == accepted
    assert await one.pay_from_outside(text) == accepted, "paid once"
    assert await other.lookup(bill.payment_hash) == accepted
    await other.settle(bill.preimage)
    settled = Received(payment_hash=bill.payment_hash, state=ReceivedState.SETTLED, amount_msat=AMOUNT_MSAT)
    assert await asyncio.wait_for(anext(stream), 30) == settled
    assert await one.lookup(bill.payment_hash) == settled
    for node in (one, other):
        await node.close()


async def test_adding_writes_nothing_and_the_same_order_gives_the_same_text_everywhere(tmp_path: Path) -> None:
    one, other = [await SimulatedReceivingNode.open(tmp_path, KEY) for _ in range(2)]
    wal = (tmp_path / f"{FILE_NAME}-wal").stat().st_size
    bill = Bill()
    order = bill.order()
    assert await one.add_invoice(order) == await other.add_invoice(order)
    assert (tmp_path / f"{FILE_NAME}-wal").stat().st_size == wal
    assert await SimulatedReceivingNode(one._file, KEY).lookup(bill.payment_hash) is None
    for node in (one, other):
        await node.close()


async def test_what_outsiders_may_not_pay(tmp_path: Path) -> None:
    clock = Clock()
    node = await SimulatedReceivingNode.open(tmp_path, KEY, clock=clock)
    bill, canceled, late = Bill(amount_msat=None), Bill(), Bill()
    text = await node.add_invoice(bill.order())
    for amount_msat in (None, 0, -1):
        with pytest.raises(NodeRefusedError):
            await node.pay_from_outside(text, amount_msat)
    assert (await node.pay_from_outside(text, 77)).amount_msat == 77
    fixed = await node.add_invoice(canceled.order())
    for amount_msat in (AMOUNT_MSAT - 1, 2 * AMOUNT_MSAT + 1):
        with pytest.raises(NodeRefusedError):
            await node.pay_from_outside(fixed, amount_msat)
    await node.cancel(canceled.payment_hash)
    with pytest.raises(NodeRefusedError):
        await node.pay_from_outside(fixed)
    for text in (foreign().payment_request, "nonsense"):
        with pytest.raises(NodeRefusedError):
            await node.pay_from_outside(text)
    text = await node.add_invoice(late.order())
    clock.now_ms += 3_601_000
    with pytest.raises(NodeRefusedError):
        await node.pay_from_outside(text)
    await node.close()


async def test_held_money_goes_back_at_its_deadline_and_the_subscriber_is_told(tmp_path: Path) -> None:
    node = await SimulatedReceivingNode.open(tmp_path, KEY, profile_of("block_ms=2"))
    bill = Bill()
    stream = node.subscribe()
    told = asyncio.ensure_future(anext(stream))
    await node.pay_from_outside(await node.add_invoice(bill.order()))
    assert (await asyncio.wait_for(told, 30)).state is ReceivedState.ACCEPTED
    canceled = await asyncio.wait_for(anext(stream), 30)
    assert canceled == Received(payment_hash=bill.payment_hash, state=ReceivedState.CANCELED)
    with pytest.raises(NodeRefusedError):
        await node.settle(bill.preimage)
    await node.close()


@pytest.mark.parametrize("changes", [{"description": "ä" * 400}, {"expiry_s": -1}, {"payment_hash": "x"}])
async def test_orders_that_make_no_invoice_are_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    node = await SimulatedReceivingNode.open(tmp_path, KEY)
    with pytest.raises(NodeRefusedError):
        await node.add_invoice(replace(Bill().order(), **changes))  # type: ignore[arg-type]
    await node.close()


async def command(folder: Path, *words: str) -> tuple[int, str]:
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY / 'protos'}:{REPOSITORY}"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.lightning.simulated", str(folder), *words,
        env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode().strip()


async def test_the_world_outside_by_hand(tmp_path: Path) -> None:
    code, text = await command(tmp_path, "invoice", "5")
    assert code == 2
    assert "no simulated node has run there" in text
    payer, receiver = await SimulatedPayingNode.open(tmp_path), await SimulatedReceivingNode.open(tmp_path, KEY)
    code, text = await command(tmp_path, "invoice", "5000", "simulated:hang")
    order = payment_of(text, 5_000)
    assert await payer.pay(order) == NodePending()
    assert await command(tmp_path, "rule", order.payment_hash, "pay") == (0, "pay")
    paid = await payer.track(order.payment_hash)
    assert isinstance(paid, NodePaid)
    assert hashlib.sha256(bytes.fromhex(paid.preimage)).hexdigest() == order.payment_hash
    bill = Bill()
    request = await receiver.add_invoice(bill.order())
    assert await command(tmp_path, "pay", request) == (0, f"accepted {AMOUNT_MSAT}")
    assert (await command(tmp_path, "pay", order.payment_request))[0] == 1
    for node in (payer, receiver):
        await node.close()


PAYER = """
import asyncio, sys
from pathlib import Path
from services.lightning.simulated import SimulatedPayingNode, profile_of
from support.node_contract import payment_of

async def main():
    node = await SimulatedPayingNode.open(Path(sys.argv[1]), profile_of(sys.argv[2]))
    for text in Path(sys.argv[3]).read_text().split() * 1000:
        await node.pay(payment_of(text))
        print(".", end="", flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("round_trips", [1, 7, 30])
async def test_two_payers_that_are_killed_pay_each_invoice_once(tmp_path: Path, round_trips: int) -> None:
    profile = "seed=21,failures=0.2,delay_ms=1"
    outsider = await Outsider.open(tmp_path, profile_of(profile))
    texts = [outsider.invoice(AMOUNT_MSAT, secrets.token_hex(4)) for _ in range(60)]
    (tmp_path / "texts").write_text("\n".join(texts))
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY / 'protos'}:{REPOSITORY}:{REPOSITORY / 'tests'}"}
    arguments = (sys.executable, "-c", PAYER, str(tmp_path), profile, str(tmp_path / "texts"))
    processes = [
        await asyncio.create_subprocess_exec(*arguments, env=environment, stdout=asyncio.subprocess.PIPE)
        for _ in range(2)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            await asyncio.wait_for(process.stdout.readexactly(round_trips), 60)
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)
            await process.wait()
    payer = await SimulatedPayingNode.open(tmp_path, profile_of(profile))
    for text in texts:
        await payer.pay(payment_of(text))
    for text in texts:
        hash_ = payment_of(text).payment_hash
        paid = await until(lambda hash_=hash_: payer.track(hash_), lambda found: not isinstance(found, NodePending))  # type: ignore[misc]
        if isinstance(paid, NodeFailed):  # bad luck, for certain: a further attempt has its own
            assert isinstance(await pay_through(payer, payment_of(text)), NodePaid)
    rows = await payer._file.read(lambda connection: connection.execute("SELECT times_paid FROM attempt").fetchall())
    assert rows == [(1,)] * len(texts)
    held = await payer._file.read(
        lambda connection: connection.execute(
            "SELECT sum(left_held_msat), sum(right_held_msat) FROM channel"
        ).fetchall()
    )
    assert held == [(0, 0)]
    for node in (payer, outsider):
        await node.close()
