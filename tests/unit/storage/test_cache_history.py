"""Whether a fact still holds, against a model that remembers everything."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from services.storage.cache import history
from services.storage.cache.history import Change, History, Look, Mark

SUBJECTS = st.sampled_from("abc")


def change(sequence: int, subject: str, life: str = "") -> Change:
    return Change(Mark(sequence, f"{life}{sequence}".encode()), subject)


@given(looks=st.lists(st.lists(SUBJECTS, max_size=4), min_size=1, max_size=12), kept=st.integers(1, 12))
def test_a_fact_holds_only_if_nothing_happened_since(looks: list[list[str]], kept: int) -> None:
    known, events = History(), [change(1, "a")]
    known.add(Look(continued=False, changes=events))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history, "EVENTS_KEPT_MAX", kept)
        for subjects in looks:
            new = [change(len(events) + 1 + index, subject) for index, subject in enumerate(subjects)]
            events += new
            known.add(Look(continued=True, changes=new))
            assert known.position == events[-1].mark
            for at, moment in enumerate(events):
                for subject in "abc":
                    untouched = all(event.subject != subject for event in events[at + 1 :])
                    remembered = at >= len(events) - kept
                    assert known.holds(moment.mark, subject) == (untouched and remembered)


@given(before=st.lists(SUBJECTS, min_size=1, max_size=6), after=st.lists(SUBJECTS, min_size=1, max_size=6))
def test_facts_of_another_life_do_not_hold(before: list[str], after: list[str]) -> None:
    known = History()
    lost = [change(number, subject, "lost") for number, subject in enumerate(before, start=1)]
    known.add(Look(continued=False, changes=lost[:1]))
    known.add(Look(continued=True, changes=lost[1:]))
    real = [change(number, subject, "real") for number, subject in enumerate(after, start=1)]
    known.add(Look(continued=False, changes=real[:1]))
    known.add(Look(continued=True, changes=real[1:]))
    assert not any(known.holds(event.mark, subject) for event in lost for subject in "abc")
    assert known.holds(real[-1].mark, "d")


def test_without_a_look_and_without_events_nothing_holds() -> None:
    known = History()
    assert not known.holds(Mark(0, b""), "a")
    known.add(Look(continued=False, changes=[change(1, "a")]))
    known.add(Look(continued=False, changes=[]))
    assert known.position is None
    assert not known.holds(change(1, "a").mark, "b")
