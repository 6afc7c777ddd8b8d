"""Permissions, cell by cell: the table of which permission decides, with an oracle written another way."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.nip.domain.remote_signer.permission import (
    CREDENTIAL_KINDS,
    PERMISSIONS_MAX,
    Effect,
    Method,
    Permission,
    counted,
    deciding,
    granted,
)

NOW = 1_000_000
SIGN = Method.SIGN_EVENT


def sign(effect: Effect, kind: int | None = None, **more: int) -> Permission:
    return Permission(method=SIGN, effect=effect, kind=kind, **more)


def effect_of(*permissions: Permission, method: Method = SIGN, kind: int | None = 1) -> Effect | None:
    found = deciding(permissions, method, kind, NOW)
    return None if found is None else found.effect


@pytest.mark.parametrize("kind", sorted(CREDENTIAL_KINDS))
@pytest.mark.parametrize("effect", list(Effect))
def test_a_wildcard_says_nothing_of_credentials(effect: Effect, kind: int) -> None:
    assert effect_of(sign(effect), kind=kind) is None
    assert effect_of(sign(effect, kind), kind=kind) is effect
    assert effect_of(sign(effect), sign(Effect.ALLOW, kind), kind=kind) is Effect.ALLOW


@pytest.mark.parametrize(("named", "wild"), list(itertools.product([None, *Effect], [None, *Effect])))
def test_one_that_names_the_kind_comes_before_one_that_does_not(named: Effect | None, wild: Effect | None) -> None:
    permissions = [sign(named, 1)] if named else []
    permissions += [sign(wild)] if wild else []
    assert effect_of(*permissions) is (named or wild)
    assert effect_of(*reversed(permissions)) is (named or wild)
    assert effect_of(*permissions, kind=2) is wild


@pytest.mark.parametrize("effects", list(itertools.permutations(Effect, 2)))
def test_deny_before_allow_before_ask(effects: tuple[Effect, Effect]) -> None:
    order = [Effect.DENY, Effect.ALLOW, Effect.ASK]
    assert effect_of(*(sign(one, 1) for one in effects)) is min(effects, key=order.index)


@pytest.mark.parametrize(("asked", "held"), list(itertools.product(Method, Method)))
def test_a_permission_is_for_its_method(asked: Method, held: Method) -> None:
    kind = 1 if asked is SIGN else None
    permission = Permission(method=held, effect=Effect.ALLOW)
    assert (effect_of(permission, method=asked, kind=kind) is Effect.ALLOW) == (asked is held)


@pytest.mark.parametrize(
    ("permission", "applies"),
    [
        (sign(Effect.ALLOW, expire_time_us=NOW + 1), True),
        (sign(Effect.ALLOW, expire_time_us=NOW), False),
        (sign(Effect.ALLOW, uses_left=1), True),
        (sign(Effect.ALLOW, uses_left=0), False),
        (sign(Effect.DENY, expire_time_us=NOW - 1), False),
    ],
)
def test_what_is_over_has_no_say(permission: Permission, applies: bool) -> None:
    assert (deciding([permission], SIGN, 1, NOW) is permission) == applies


permissions = st.builds(
    lambda method, effect, kind, expire, uses: Permission(
        method=method,
        effect=effect,
        kind=kind if method is SIGN else None,
        expire_time_us=expire,
        uses_left=uses if effect is Effect.ALLOW else None,
    ),
    st.sampled_from(Method),
    st.sampled_from(Effect),
    st.sampled_from([None, 1, 22_242, 27_235]),
    st.sampled_from([None, NOW - 1, NOW, NOW + 1]),
    st.sampled_from([None, 0, 1, 2]),
)


@given(st.lists(permissions, max_size=8), st.sampled_from(Method), st.sampled_from([1, 4, 22_242, 27_235]))
def test_what_decides_agrees_with_a_simple_table(held: list[Permission], method: Method, number: int) -> None:
    kind = number if method is SIGN else None

    def says(effect: Effect, named: bool) -> bool:
        return any(
            one.effect is effect
            and one.method is method
            and (one.kind is not None) == named
            and (one.kind == kind if named else kind not in (22_242, 27_235))
            and (one.expire_time_us is None or one.expire_time_us > NOW)
            and one.uses_left != 0
            for one in held
        )

    cells = [(effect, named) for named in (True, False) for effect in (Effect.DENY, Effect.ALLOW, Effect.ASK)]
    expected = next((effect for effect, named in cells if says(effect, named)), None)
    assert effect_of(*held, method=method, kind=kind) is expected


@given(st.lists(permissions, max_size=8))
def test_a_use_is_counted_where_it_counts(held: list[Permission]) -> None:
    used = deciding(held, SIGN, 1, NOW)
    if used is None:
        return
    after = counted(held, used)
    left = [one.uses_left for one in held]
    changed = [(before, one.uses_left) for before, one in zip(left, after, strict=True) if before != one.uses_left]
    assert changed == ([] if used.uses_left is None else [(used.uses_left, used.uses_left - 1)])


def test_a_grant_replaces_its_like_and_the_list_stays_small() -> None:
    held: tuple[Permission, ...] = (sign(Effect.ASK),)
    for moment in range(3 * PERMISSIONS_MAX):
        held = granted(held, sign(Effect.ALLOW, moment % 1_000, expire_time_us=NOW + moment + 10), NOW)
    assert len(held) <= PERMISSIONS_MAX
    again = granted(held, replace(held[-1], expire_time_us=NOW + 999_999), NOW)
    assert len(again) == len(held)
    assert effect_of(*again, kind=held[-1].kind) is Effect.ALLOW
    assert granted(held, sign(Effect.ALLOW, 7, expire_time_us=NOW + 5_000_000), NOW + 2_000_000)[0] == sign(Effect.ASK)
