"""Retry policies as views: what Envoy must see, and what the callee's sidecar must say, for another attempt."""

from __future__ import annotations

from collections.abc import Mapping

from generator.model import Hedging, RetryCondition, RetryPolicy, defaults
from generator.render.names import (
    NOT_DELIVERED,
    NOT_DELIVERED_HEADER,
    PUSH_BACK_HEADER,
    RESET_CONNECTION,
    RESET_HEADER,
    RESET_STREAM,
    STATUS_HEADER,
    WAIT_HEADER,
)
from generator.render.views import AnswerMatch, RetryView

UNAVAILABLE = "14"
RESOURCE_EXHAUSTED = "8"
HOST_CHOICES_PER_ATTEMPT = 32
"""How often the balancer may be asked again for a replica that this call has not tried. With two replicas a dead one, which
has no calls, wins three picks of four: 32 picks miss the other once in 10,000 times."""
WAIT_S_MAX = 9
"""Longest push-back that a sidecar waits out. A call that waits longer holds its place for nothing: its caller is told."""
WAIT_JITTER_RATIO = 1.5
"""Envoy waits up to half as long again."""

Words = Mapping[RetryCondition, tuple[str, ...]]
"""Envoy's own words for what this sidecar sees itself."""
WORDS: Words = {
    # The peer's sidecar was not reached or refused the stream.
    RetryCondition.NOT_DELIVERED: ("connect-failure", "refused-stream", "reset-before-request"),
    # The connection broke in the middle.
    RetryCondition.RESET: ("reset",),
}
EXTERNAL_WORDS: Words = {
    **WORDS,
    # A host outside has no sidecar that would say whose fault it is.
    RetryCondition.UNAVAILABLE: ("unavailable",),
}


def retry_of(
    policy: RetryPolicy | None,
    hedging: Hedging | None = None,
    *,
    deadline_ms: int | None,
    is_edge: bool = False,
    is_external: bool = False,
    avoids_zones: bool = False,
) -> RetryView | None:
    """Translate the conditions. A hedged call is bounded by the attempts of its hedging alone."""
    if policy is None and hedging is None:
        return None
    per_try_ms = hedging.delay_ms if hedging is not None else policy.per_try_ms if policy is not None else None
    found = _conditions(policy, per_try_ms)
    wait_s_max = 0 if is_external else longest_wait_s(deadline_ms)
    words = [word for each in found for word in (EXTERNAL_WORDS if is_external else WORDS).get(each, ())]
    headers = _external_answers(found) if is_external else _answers(found, wait_s_max, is_edge=is_edge)
    base_ms = policy.backoff_base_ms if policy is not None else defaults.BACKOFF_BASE_MS
    return RetryView(
        retry_on=",".join([*words, *(["retriable-headers"] if headers else [])]),
        headers=headers,
        attempts_max=hedging.attempts_max if hedging is not None else policy.attempts_max if policy is not None else 0,
        host_choices_max=HOST_CHOICES_PER_ATTEMPT,
        backoff_base_ms=base_ms,
        backoff_ms_max=policy.backoff_max_ms if policy is not None else base_ms * defaults.BACKOFF_RATIO,
        wait_header=WAIT_HEADER if wait_s_max and not PUSHED_BACK.isdisjoint(found) else None,
        wait_ms_max=wait_s_max * defaults.SECOND_MS,
        per_try_ms=per_try_ms,
        is_hedged=hedging is not None,
        avoids_zones=avoids_zones,
    )


PUSHED_BACK = frozenset({RetryCondition.UNAVAILABLE, RetryCondition.PUSH_BACK})
"""Conditions under which the service may say how long to wait."""


def longest_wait_s(deadline_ms: int | None) -> int:
    """The longest push-back that ends within the deadline, in whole seconds; with 0 only those under a second do."""
    if deadline_ms is None:
        return WAIT_S_MAX
    return min(WAIT_S_MAX, int((deadline_ms - 1) / (defaults.SECOND_MS * WAIT_JITTER_RATIO)))


def _conditions(policy: RetryPolicy | None, per_try_ms: int | None) -> tuple[RetryCondition, ...]:
    allowed = policy.conditions if policy is not None else frozenset[RetryCondition]()
    if per_try_ms is not None:
        allowed |= {RetryCondition.RESET}  # how Envoy calls an attempt that it gave up
    return tuple(condition for condition in RetryCondition if condition in allowed)


def _answers(found: tuple[RetryCondition, ...], wait_s_max: int, *, is_edge: bool) -> tuple[AnswerMatch, ...]:
    """What the callee's sidecar says when these conditions hold; see `names` for the headers."""
    # At the edge a stranger's nonsense, to which applications reset their streams, is not multiplied.
    reset = RESET_CONNECTION if is_edge else f"{RESET_CONNECTION}|{RESET_STREAM}"
    # Under a second Envoy's back-off will do; from a second on only a wait in seconds is kept.
    waits = f"[1-{wait_s_max}]"
    later, later_or_silent = (f"|[0-9]{{4}};{waits}", f"|([0-9]{{4}})?;{waits}") if wait_s_max else ("", "")
    answers = {
        RetryCondition.NOT_DELIVERED: AnswerMatch(name=NOT_DELIVERED_HEADER, pattern=NOT_DELIVERED),
        RetryCondition.RESET: AnswerMatch(name=RESET_HEADER, pattern=reset),
        # Not Envoy's own `unavailable`: that would also repeat what failed because of a dependency, and what may not be repeated.
        RetryCondition.UNAVAILABLE: AnswerMatch(
            name=STATUS_HEADER, pattern=f"{UNAVAILABLE};;([0-9]{{0,3}};{later_or_silent})"
        ),
        RetryCondition.PUSH_BACK: AnswerMatch(
            name=STATUS_HEADER, pattern=f"{RESOURCE_EXHAUSTED};;([0-9]{{1,3}};{later})"
        ),
    }
    return tuple(answers[condition] for condition in found)


def _external_answers(found: tuple[RetryCondition, ...]) -> tuple[AnswerMatch, ...]:
    """Our own headers mean nothing from outside; a push-back does, as long as Envoy's back-off is about as long."""
    if RetryCondition.PUSH_BACK not in found:
        return ()
    return (AnswerMatch(name=PUSH_BACK_HEADER, pattern="[0-9]{1,3}"),)
