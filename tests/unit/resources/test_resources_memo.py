"""A memo is bounded, keeps what is used, and gives back what was put."""

from __future__ import annotations

import gc

import pytest

from generator.resources.memo import Memo, collector_paused


def test_it_never_grows_beyond_twice_its_size() -> None:
    memo: Memo[int, str] = Memo(10)
    for number in range(1_000):
        memo.put(number, str(number))
        assert len(memo) <= 20
    assert all(memo.get(number) == str(number) for number in range(990, 1_000))
    assert memo.get(0) is None


def test_what_is_used_stays() -> None:
    memo: Memo[str, str] = Memo(10)
    memo.put("used", "x")
    for number in range(1_000):
        memo.put(str(number), "y")
        assert memo.get("used") == "x"


def test_the_collector_comes_back_also_after_an_error() -> None:
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError), collector_paused():
        divide_by_zero()
    assert gc.isenabled()
    gc.disable()
    try:
        with collector_paused():
            assert not gc.isenabled()
        assert not gc.isenabled(), "who had switched it off finds it so"
    finally:
        gc.enable()


def divide_by_zero() -> float:
    return 1 / int(gc.isenabled())
