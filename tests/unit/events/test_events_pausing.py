"""Rests between batches: short on an idle machine, a share of the work on a busy one, never long."""

from __future__ import annotations

import pytest

from services.events.pausing import REST_OF_WORK, REST_S_MAX, REST_S_MIN, rest_s


@pytest.mark.parametrize(
    ("worked_s", "rests_s"),
    [(0.0, REST_S_MIN), (0.001, REST_S_MIN), (0.03, 0.03 * REST_OF_WORK), (0.2, REST_S_MAX), (60.0, REST_S_MAX)],
)
def test_rests_follow_the_work_within_their_bounds(worked_s: float, rests_s: float) -> None:
    assert rest_s(worked_s) == rests_s
