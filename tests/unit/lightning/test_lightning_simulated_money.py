"""Money in the simulated network: whatever happens, it is conserved, nobody pays twice, and a run can be repeated."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.lightning.node import (
    NodeFailed,
    NodeFailure,
    NodePaid,
    NodePending,
    NodeRefusedError,
    NodeUnknown,
    ReceivedState,
)
from services.lightning.payment_request import PaymentRequest
from services.lightning.simulated import attempts
from services.lightning.simulated.network import node_key
from services.lightning.simulated.profile import Profile
from services.lightning.simulated.received import CHANGES_KEPT, OUTSIDE
from services.lightning.simulated.words import Behaviour, Words
from support.simulated import RECEIVER, BrokenOffError, Played, hash_of

STRANGERS = [node_key(77, f"stranger {number}").public_key for number in range(3)]
PREIMAGES = [bytes((number,)) * 32 for number in range(6)]
amounts = st.integers(1, 2**34)


class NetworkMachine(RuleBasedStateMachine):
    """Payments over a drawn network, with faults, rulings, deadlines and a receiver of its own, in any order."""

    @initialize(seed=st.integers(0, 10**6), failures=st.sampled_from([0.0, 0.3]), hangs=st.sampled_from([0.0, 0.3]))
    def begin(self, seed: int, failures: float, hangs: float) -> None:
        self.played = Played(Profile(seed=seed, nodes=12, failures=failures, hangs=hangs, delay_ms=20, block_ms=100))
        self.orders: dict[str, tuple[str, int, int]] = {}
        self.final: dict[str, object] = {}
        self.taken: set[str] = set()
        self.outside: set[str] = set()

    @rule(number=st.integers(0, 11), payee=st.integers(0, 3), amount=amounts, limit=st.integers(0, 10**8))
    def pay(self, number: int, payee: int, amount: int, limit: int) -> None:
        payment_hash = hashlib.sha256(b"%d" % number).hexdigest()
        self._pay(payment_hash, [self.played.world.network.payee, *STRANGERS][payee], amount, limit)

    @rule(number=st.integers(0, 5), amount=amounts)
    def pay_the_receiver(self, number: int, amount: int) -> None:
        self._pay(hash_of(PREIMAGES[number]), RECEIVER, amount, 10**9)

    def _pay(self, payment_hash: str, payee: str, amount: int, limit: int) -> None:
        before = self.played.outcome(payment_hash)
        begun = self.played.pay(self.played.task(payment_hash, payee, amount, limit))
        if begun:
            assert isinstance(before, NodeUnknown | NodeFailed | NodePending)
            self.orders[payment_hash] = (payee, amount, limit)
            self.final.pop(payment_hash, None)

    @rule(ms=st.sampled_from([1, 50, 1_000, 20_000]))
    def time_passes(self, ms: int) -> None:
        self.played.now_ms += ms
        self.played.advance()

    @rule(number=st.integers(0, 11), behaviour=st.sampled_from(list(Behaviour)))
    def somebody_rules(self, number: int, behaviour: Behaviour) -> None:
        payment_hash = hashlib.sha256(b"%d" % number).hexdigest()
        with self.played.transaction() as connection:
            attempts.rule(connection, self.played.world, payment_hash, behaviour, self.played.now_ms)

    @rule(number=st.integers(0, 5), amount=amounts)
    def somebody_outside_pays(self, number: int, amount: int) -> None:
        request = PaymentRequest(
            currency="bcrt",
            payee_pubkey=RECEIVER,
            payment_hash=hash_of(PREIMAGES[number]),
            payment_secret="00" * 32,
            amount_msat=None,
            create_time_s=self.played.now_ms // 1_000,
        )
        before = self.played.received(request.payment_hash)
        try:
            with self.played.transaction() as connection:
                attempts.pay_from_outside(connection, self.played.world, request, amount, self.played.now_ms)
            self.outside.add(request.payment_hash)
        except NodeRefusedError:
            assert before is not None

    @rule(number=st.integers(0, 5))
    def settle(self, number: int) -> None:
        preimage = PREIMAGES[number]
        before = self.played.received(hash_of(preimage))
        try:
            with self.played.transaction() as connection:
                attempts.settle(connection, self.played.world, preimage, self.played.now_ms)
            self.taken.add(hash_of(preimage))
        except NodeRefusedError:
            assert before is None or before.state is not ReceivedState.SETTLED

    @rule(number=st.integers(0, 5))
    def cancel(self, number: int) -> None:
        payment_hash = hash_of(PREIMAGES[number])
        try:
            with self.played.transaction() as connection:
                attempts.cancel(connection, payment_hash, self.played.now_ms)
        except NodeRefusedError:
            assert payment_hash in self.taken

    @precondition(lambda self: self.orders)
    @invariant()
    def money_is_conserved(self) -> None:
        network, gains = self.played.world.network, self.played.gains({*STRANGERS, RECEIVER})
        arrived: dict[str, int] = dict.fromkeys((network.payee, *STRANGERS, RECEIVER), 0)
        spent_msat = 0
        for payment_hash, (payee, amount_msat, limit_msat) in self.orders.items():
            outcome = self.played.outcome(payment_hash)
            if isinstance(outcome, NodePaid):
                assert outcome.fee_msat <= limit_msat
                spent_msat += amount_msat + outcome.fee_msat
                arrived[payee] += amount_msat
        assert gains[network.own] == -spent_msat
        assert {node: gains[node] for node in arrived} == arrived
        assert all(gains[node] >= 0 for node in network.members)
        assert gains.total() == 0

    @precondition(lambda self: self.orders)
    @invariant()
    def what_is_final_stays(self) -> None:
        for payment_hash in self.orders:
            outcome = self.played.outcome(payment_hash)
            assert self.final.get(payment_hash, outcome) == outcome
            if not isinstance(outcome, NodePending):
                self.final[payment_hash] = outcome
        assert all(row[-1] in (0, 1) for row in self.played.rows("attempt")), "paid more than once"

    @precondition(lambda self: self.orders)
    @invariant()
    def payer_and_receiver_agree(self) -> None:
        states = {
            ReceivedState.ACCEPTED: NodePending,
            ReceivedState.SETTLED: NodePaid,
            ReceivedState.CANCELED: NodeFailed,
        }
        for preimage in PREIMAGES:
            received = self.played.received(hash_of(preimage))
            outcome = self.played.outcome(hash_of(preimage))
            if hash_of(preimage) in self.outside:
                assert not isinstance(outcome, NodePaid), "paid from outside and by our node"
            elif received is None:
                assert not isinstance(outcome, NodePaid)
            elif received.state is not ReceivedState.CANCELED:
                assert isinstance(outcome, states[received.state])
                assert received.amount_msat == self.orders[hash_of(preimage)][1]
            if isinstance(outcome, NodePaid):
                assert outcome.preimage == preimage.hex()

    @precondition(lambda self: self.orders)
    @invariant()
    def invoices_go_one_way_and_each_step_is_told_once(self) -> None:
        told: dict[str, list[int]] = {}
        for _, _, payment_hash, state, *_ in self.played.rows("received_change"):
            told.setdefault(str(payment_hash), []).append(int(state))  # type: ignore[call-overload]
        assert all(states in ([2], [2, 3], [2, 4]) for states in told.values()), told
        assert {row[0]: row[1] for row in self.played.rows("received")} == {
            str(row[0]): told.get(str(row[0]), [4])[-1] for row in self.played.rows("received")
        }
        assert set(told) <= {row[0] for row in self.played.rows("received")}


TestNetworkMachine = NetworkMachine.TestCase
TestNetworkMachine.settings = settings(max_examples=60, stateful_step_count=30)

Payments = list[tuple[int, int, int]]


@given(
    st.integers(0, 10**6),
    st.lists(st.tuples(st.integers(0, 9), amounts, st.sampled_from([1, 30, 5_000])), min_size=1, max_size=15),
)
@settings(max_examples=25)
def test_the_same_seed_and_payments_give_the_same_world(seed: int, payments: Payments) -> None:
    def run() -> dict[str, list[tuple[object, ...]]]:
        played = Played(Profile(seed=seed, nodes=12, failures=0.3, hangs=0.2, delay_ms=20, block_ms=100))
        for number, amount_msat, ms in payments:
            task = played.task(hashlib.sha256(b"%d" % number).hexdigest(), STRANGERS[number % 3], amount_msat, 10**7)
            played.pay(task)
            played.now_ms += ms
            played.advance()
        return played.everything()

    assert run() == run()


def dying_at_each_statement(played: Played, work: Callable[[int], Any]) -> int:
    """Do `work(dies_at)` with a death at each statement: nothing is changed by it. At last do it. How many statements it has."""
    for statement in range(1, 100):
        before = played.everything()
        try:
            work(statement)
        except BrokenOffError:
            assert played.everything() == before
        else:
            return statement - 1
    raise AssertionError("it never ends")


def test_a_crash_at_any_statement_changes_nothing_and_the_repetition_does_all() -> None:
    played = Played(Profile(seed=4, nodes=12, delay_ms=10))
    preimage = PREIMAGES[0]
    task = played.task(hash_of(preimage), RECEIVER, 1_000_000, 10**7)
    assert dying_at_each_statement(played, lambda at: played.pay(task, dies_at=at)) > 5
    assert played.outcome(task.payment_hash) == NodePending()
    played.now_ms += 1_000
    assert dying_at_each_statement(played, lambda at: played.advance(dies_at=at)) > 5
    received = played.received(task.payment_hash)
    assert received is not None
    assert received.state is ReceivedState.ACCEPTED

    def settle(at: int) -> None:
        with played.transaction(at) as connection:
            attempts.settle(connection, played.world, preimage, played.now_ms)

    assert dying_at_each_statement(played, settle) > 5
    paid = played.outcome(task.payment_hash)
    assert isinstance(paid, NodePaid)
    assert paid.preimage == preimage.hex()
    assert played.gains({RECEIVER})[RECEIVER] == 1_000_000
    assert not played.pay(task)


def test_money_that_nobody_decides_about_goes_back_at_its_deadline() -> None:
    played = Played(Profile(seed=4, nodes=12, block_ms=100))
    payment_hash = hash_of(PREIMAGES[0])
    played.pay(played.task(payment_hash, RECEIVER, 1_000_000, 10**7, final_delta_blocks=80))
    received = played.received(payment_hash)
    assert received is not None
    assert received.settle_deadline_ms == played.now_ms + (80 - attempts.BEFORE_EXPIRY_BLOCKS) * 100
    played.now_ms = received.settle_deadline_ms - 1
    played.advance()
    assert played.outcome(payment_hash) == NodePending()
    played.now_ms += 1
    with pytest.raises(NodeRefusedError, match="no money is held"), played.transaction() as connection:
        attempts.settle(connection, played.world, PREIMAGES[0], played.now_ms)
    played.advance()
    assert played.outcome(payment_hash) == NodeFailed(NodeFailure.INCORRECT_PAYMENT_DETAILS)
    after = played.received(payment_hash)
    assert after is not None
    assert (after.state, after.amount_msat) == (ReceivedState.CANCELED, 0)
    assert not played.gains({RECEIVER}).total()


def test_what_hangs_fails_when_its_time_lock_passes_and_its_channels_are_free_again() -> None:
    played = Played(Profile(seed=4, nodes=12, block_ms=100))
    task = played.task("ab" * 32, STRANGERS[0], 1_000_000, 10**7, words=Words(behaviour=Behaviour.HANG))
    played.pay(task)
    assert any(row[2] or row[3] for row in played.rows("channel"))
    played.now_ms += 30_000
    played.advance()
    assert played.outcome(task.payment_hash) == NodeFailed(NodeFailure.TIMEOUT)
    assert not any(row[2] or row[3] for row in played.rows("channel"))
    assert played.pay(task), "a failed payment may be tried again"


def test_a_ruling_cannot_conjure_up_a_route() -> None:
    played = Played(Profile(seed=4, nodes=12, delay_ms=1_000, failures=1.0))
    task = played.task("ab" * 32, STRANGERS[0], 1_000_000, 10**7)
    played.pay(task)
    assert played.outcome(task.payment_hash) == NodePending()
    with played.transaction() as connection:
        attempts.rule(connection, played.world, task.payment_hash, Behaviour.PAY, played.now_ms)
    played.now_ms += 10**6
    played.advance()
    assert played.outcome(task.payment_hash) == NodeFailed(NodeFailure.NO_ROUTE)


def test_only_the_newest_changes_are_kept() -> None:
    played = Played(Profile())
    with played.transaction() as connection:
        for number in range(CHANGES_KEPT + 5):
            attempts.accept(connection, f"{number:064x}", 1, 10**9, 0, payer=OUTSIDE)
    sequences = [row[0] for row in played.rows("received_change")]
    assert (len(sequences), min(sequences), max(sequences)) == (CHANGES_KEPT, 6, CHANGES_KEPT + 5)  # type: ignore[type-var]
