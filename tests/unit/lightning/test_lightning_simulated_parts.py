"""The pure parts of the simulated network: words, profiles, chance, the drawn graph, routes, plans."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.lightning.node import NodeFailure
from services.lightning.simulated.chance import between, draw, happens
from services.lightning.simulated.network import Channel, Network, make_network, node_key
from services.lightning.simulated.planning import Fate, Plan, Task, plan_payment
from services.lightning.simulated.profile import Profile, profile_of
from services.lightning.simulated.routing import Route, cheapest_route
from services.lightning.simulated.words import Behaviour, Words, words_of

STRANGER = node_key(5, "a stranger").public_key
seeds = st.integers(0, 2**32)
sizes = st.integers(6, 30)


def first_balance(channel: Channel, node: str) -> int:
    return channel.first_msat(node)


def task(payee: str, amount_msat: int = 100_000, **changes: object) -> Task:
    values: dict[str, object] = {
        "payment_hash": "ab" * 32,
        "payee": payee,
        "amount_msat": amount_msat,
        "fee_limit_msat": 10**12,
        "timeout_s": 60,
        "final_delta_blocks": 18,
        "words": Words(),
    }
    return Task(**(values | changes))  # type: ignore[arg-type]


def plan(profile: Profile, wanted: Task) -> Plan:
    return plan_payment(make_network(profile), profile, first_balance, wanted)


@pytest.mark.parametrize(
    ("description", "words"),
    [
        ("", Words()),
        ("simulated:fail", Words(behaviour=Behaviour.FAIL)),
        ("a simulated:hang b", Words(behaviour=Behaviour.HANG)),
        ("simulated:delay=1500 simulated:fee=7", Words(delay_ms=1_500, fee_msat=7)),
        ("simulated:delay=999999999", Words(delay_ms=3_600_000)),
        ("simulated:delay=-1 simulated:fee= simulated:unknown xsimulated:fail simulated:fee=٣", Words()),
        ("simulated:hang simulated:fail", Words(behaviour=Behaviour.FAIL)),
    ],
)
def test_words_of_a_description(description: str, words: Words) -> None:
    assert words_of(description) == words


@pytest.mark.parametrize(
    ("text", "profile"),
    [
        ("", Profile()),
        ("seed=7", Profile(seed=7, nodes=24)),
        ("seed=7, nodes=6", Profile(seed=7, nodes=6)),
        ("failures=0.1,hangs=1,lost=0", Profile(failures=0.1, hangs=1.0)),
        ("delay_ms=50,block_ms=10,down_ms=5,down_every_ms=100",
         Profile(delay_ms=50, block_ms=10, down_ms=5, down_every_ms=100)),
    ],
)  # fmt: skip
def test_profiles(text: str, profile: Profile) -> None:
    assert profile_of(text) == profile


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("speed=7", "names seed"),
        ("seed", "names seed"),
        ("seed=-1", "seed must be 0"),
        ("seed=٣", "seed must be 0"),
        ("nodes=5", "nodes must be 6"),
        ("nodes=201", "nodes must be 6"),
        ("failures=2", "failures must be 0 to 1"),
        ("failures=nan", "failures must be 0 to 1"),
        ("hangs=many", "hangs must be 0 to 1"),
        ("seed=1,seed=2", "twice"),
        ("down_ms=60001", "more than down_every_ms"),
    ],
)
def test_what_is_no_profile_is_refused(text: str, cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        profile_of(text)


@given(seeds, st.text(max_size=20), st.integers(-5, 5), st.integers(0, 100))
def test_chance_is_the_same_for_the_same_words(seed: int, word: str, least: int, span: int) -> None:
    assert draw(seed, word) == draw(seed, word)
    assert least <= between(least, least + span, seed, word) <= least + span
    assert happens(1.0, seed, word)
    assert not happens(0.0, seed, word)


def test_chance_is_as_probable_as_it_says() -> None:
    assert 900 < sum(happens(0.1, 3, "x", number) for number in range(10_000)) < 1_100
    assert len({draw(3, *words) for words in itertools.product("ab", repeat=10)}) == 1024
    assert draw(1, "ab", "c") != draw(1, "a", "bc")


@given(seeds, sizes)
@settings(max_examples=30)
def test_a_network_is_fixed_by_its_seed_and_hangs_together(seed: int, nodes: int) -> None:
    profile = Profile(seed=seed, nodes=nodes)
    network = make_network(profile)
    make_network.cache_clear()
    assert make_network(profile) == network
    assert len(network.channels) == nodes
    assert network.of(network.hermit) == ()
    reached, border = {network.own}, [network.own]
    while border:
        node = border.pop()
        found = {channel.other(node) for channel in network.of(node)} - reached
        reached |= found
        border += found
    assert reached == set(network.channels) - {network.hermit}
    assert network.of(STRANGER) == network.of(STRANGER) != ()
    assert all(channel.right == STRANGER for channel in network.of(STRANGER))


@given(seeds, sizes)
@settings(max_examples=30)
def test_channels_hold_what_their_capacity_says(seed: int, nodes: int) -> None:
    network = make_network(Profile(seed=seed, nodes=nodes))
    for node, channels in network.channels.items():
        for channel in channels:
            assert channel.capacity_msat is not None
            assert 0 <= channel.first_msat(node) <= channel.capacity_msat
            assert channel.first_msat(node) + channel.first_msat(channel.other(node)) == channel.capacity_msat


def all_routes(network: Network, payee: str, amount_msat: int) -> list[int]:
    """Fees of all ways without a loop, by exhaustion: the second opinion on Dijkstra."""
    fees = []

    def back(node: str, arriving_msat: int, seen: frozenset[str]) -> None:
        if node == network.own:
            fees.append(arriving_msat - amount_msat)
            return
        for channel in network.of(node):
            sender = channel.other(node)
            if sender in seen or (channel.capacity_msat or 0) < arriving_msat:
                continue
            fee_msat = 0 if sender == network.own else channel.policy(sender).fee_msat(arriving_msat)
            back(sender, arriving_msat + fee_msat, seen | {sender})

    back(payee, amount_msat, frozenset({payee}))
    return fees


@given(seeds, st.integers(1, 2**36), st.booleans())
@settings(max_examples=40)
def test_the_route_is_the_cheapest_of_all(seed: int, amount_msat: int, stranger: bool) -> None:
    network = make_network(Profile(seed=seed, nodes=9))
    payee = STRANGER if stranger else network.payee
    fits = lambda channel, _sender, msat: channel.capacity_msat >= msat  # noqa: E731
    route = cheapest_route(network, payee, amount_msat, 18, fits)
    fees = all_routes(network, payee, amount_msat)
    assert (route is None) == (not fees)
    if route is not None:
        assert route.fee_msat == min(fees)
        check_route(network, route, payee)


def check_route(network: Network, route: Route, payee: str) -> None:
    """It leads from us to the payee, and each node on the way keeps its fee."""
    node = network.own
    for hop, onward in itertools.pairwise((*route.hops, None)):
        assert hop is not None
        assert hop.sender == node
        node = hop.channel.other(node)
        if onward is not None:
            assert hop.amount_msat - onward.amount_msat == onward.channel.policy(node).fee_msat(onward.amount_msat)
    assert node == payee
    assert route.hops[-1].amount_msat == route.amount_msat
    assert route.delay_blocks == 18 + sum(hop.channel.policy(hop.sender).delta_blocks for hop in route.hops[1:])


def test_there_is_no_route_to_ourselves_nor_to_a_hermit() -> None:
    network = make_network(Profile(seed=1, nodes=9))
    for payee in (network.own, network.hermit):
        assert cheapest_route(network, payee, 1, 18, lambda *_: True) is None


@pytest.mark.parametrize(("amount_msat", "fee_msat"), [(1, 1_000), (10_000, 1_010), (100_000, 1_100)])
def test_the_friendly_network_costs_a_satoshi_and_a_thousandth(amount_msat: int, fee_msat: int) -> None:
    paid = plan(Profile(), task(STRANGER, amount_msat, fee_limit_msat=fee_msat))
    assert (paid.fate, paid.fee_msat, paid.delay_ms, paid.tries) == (Fate.PAID, fee_msat, 0, 1)
    failed = plan(Profile(), task(STRANGER, amount_msat, fee_limit_msat=fee_msat - 1))
    assert (failed.fate, failed.failure, failed.route) == (Fate.FAILED, NodeFailure.NO_ROUTE, None)


def test_words_decide() -> None:
    failed = plan(Profile(), task(STRANGER, words=Words(behaviour=Behaviour.FAIL)))
    assert (failed.fate, failed.failure) == (Fate.FAILED, NodeFailure.NO_ROUTE)
    hangs = plan(Profile(block_ms=10), task(STRANGER, words=Words(behaviour=Behaviour.HANG)))
    assert (hangs.fate, hangs.failure, hangs.delay_ms) == (Fate.HANGS, NodeFailure.TIMEOUT, (18 + 40) * 10)
    late = plan(Profile(), task(STRANGER, words=Words(delay_ms=1_500, fee_msat=7)))
    assert (late.fate, late.delay_ms, late.fee_msat) == (Fate.PAID, 1_500, 7)
    pays = plan(Profile(hangs=1.0), task(STRANGER, words=Words(behaviour=Behaviour.PAY)))
    assert pays.fate is Fate.PAID
    assert plan(Profile(hangs=1.0), task(STRANGER)).fate is Fate.HANGS


def test_hops_take_time_and_patience_ends() -> None:
    assert plan(Profile(delay_ms=50), task(STRANGER)).delay_ms == 2 * 2 * 50
    profile = Profile(seed=3, nodes=20, failures=1.0, delay_ms=1_000)
    late = plan(profile, task(make_network(profile).payee, timeout_s=1))
    assert (late.failure, late.delay_ms, late.tries) == (NodeFailure.TIMEOUT, 1_000, 1)


def test_without_money_nothing_is_tried() -> None:
    profile = Profile(seed=3, nodes=20)
    network = make_network(profile)
    own_msat = sum(channel.first_msat(network.own) for channel in network.of(network.own))
    poor = plan(profile, task(network.payee, own_msat + 1))
    assert (poor.failure, poor.tries) == (NodeFailure.INSUFFICIENT_BALANCE, 0)


@given(seeds, st.integers(1, 2**34), st.integers(0, 10**8), st.floats(0, 1))
@settings(max_examples=60)
def test_a_plan_is_repeatable_within_the_limit_and_over_channels_that_can_pay(
    seed: int, amount_msat: int, fee_limit_msat: int, failures: float
) -> None:
    profile = Profile(seed=seed, nodes=16, failures=failures)
    wanted = task(make_network(profile).payee, amount_msat, fee_limit_msat=fee_limit_msat)
    first = plan(profile, wanted)
    assert plan(profile, wanted) == first
    if first.fate is Fate.PAID:
        assert first.route is not None
        assert 0 <= first.fee_msat <= fee_limit_msat
        assert all(hop.channel.first_msat(hop.sender) >= hop.amount_msat for hop in first.route.hops)
    else:
        assert first.route is None


def test_hidden_balances_make_some_first_tries_fail_and_others_arrive() -> None:
    plans = []
    for seed in range(60):
        profile = Profile(seed=seed, nodes=24)
        plans.append(plan(profile, task(make_network(profile).payee, 2**33)))
    assert any(each.fate is Fate.PAID and each.tries > 1 for each in plans)
    assert any(each.fate is Fate.PAID and each.tries == 1 for each in plans)
    assert any(each.fate is Fate.FAILED for each in plans)


def test_each_attempt_has_its_own_luck() -> None:
    profile = Profile(hangs=0.5)
    wanted = task(STRANGER)
    fates = [plan(profile, replace(wanted, number=number)).fate for number in range(1, 50)]
    assert set(fates) == {Fate.PAID, Fate.HANGS}
