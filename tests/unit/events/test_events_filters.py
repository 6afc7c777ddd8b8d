"""Filters on types, and events as headers: what goes out comes back."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nipmesh.events.v1 import events_pb2
from services.events.cloud_event import CloudEvent, PayloadError, event_of, headers_of, time_ms_of, time_text
from services.events.filters import checked, is_type, matches

WORDS = st.lists(st.sampled_from(["a", "b", "*"]), min_size=1, max_size=4)
FILTERS = st.builds(lambda words, rest: ".".join([*words, *rest]), WORDS, st.sampled_from([[], [">"]])) | st.just(">")
TYPES = [".".join(words) for size in range(1, 5) for words in itertools.product("ab", repeat=size)]


@pytest.mark.parametrize(
    ("pattern", "kind", "expected"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.b.c", False),
        ("a.*", "a.b", True),
        ("a.*", "a", False),
        ("a.*", "a.b.c", False),
        ("a.>", "a", False),
        ("a.>", "a.b.c", True),
        (">", "a", True),
        ("*.b", "a.b", True),
    ],
)
def test_matches(pattern: str, kind: str, expected: bool) -> None:
    assert matches(pattern, kind) is expected


@given(st.lists(FILTERS, min_size=1, max_size=4))
def test_each_type_is_asked_for_once_or_the_filters_are_refused(filters: list[str]) -> None:
    wanted = {kind for kind in TYPES if any(matches(each, kind) for each in filters)}
    try:
        kept = checked(filters)
    except ValueError:
        return
    for kind in TYPES:
        assert sum(matches(each, kind) for each in kept) == (kind in wanted)


@pytest.mark.parametrize("wrong", ["", "a..b", "a.>.b", "a b", ".a", "a.", "a*", "*a", "a.>>", "ä"])
def test_what_is_no_filter_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="filter"):
        checked([wrong])


def test_two_filters_that_meet_are_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        checked(["a.*.c", "a.b.*"])
    with pytest.raises(ValueError, match="1 to"):
        checked([])


def test_types() -> None:
    assert is_type("nipmesh.invoice.v1.in_flight")
    assert not any(is_type(wrong) for wrong in ("", "a b", "a..b", "a.*", "a.>", "x" * 201))


TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30)


@given(TEXT, TEXT, TEXT, st.integers(0, 4_000_000_000_000), st.binary(max_size=50))
def test_an_event_comes_back_from_its_headers(
    event_id: str, source: str, subject: str, time_ms: int, data: bytes
) -> None:
    event = CloudEvent(
        event_id=event_id,
        type="nipmesh.a.v1.b",
        source=source,
        subject=subject,
        time_ms=time_ms,
        data=data,
        schema="nipmesh.events.v1.InvoiceChanged",
        traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01",
        extensions=(("expirytime", time_text(time_ms)), ("other", subject)),
    )
    headers = headers_of(event)
    assert all(value.isascii() and value.isprintable() and value == value.strip() for value in headers.values())
    assert event_of(headers, data) == event
    assert event_of({name.title(): value for name, value in headers.items()}, data) == event


def test_time_is_rfc_3339_with_milliseconds() -> None:
    assert time_text(1_790_000_000_007) == "2026-09-21T14:13:20.007Z"
    assert time_ms_of("2026-09-21T16:13:20.007+02:00") == 1_790_000_000_007
    assert time_ms_of("1970-01-01T00:00:01.001Z") == 1_001
    assert time_ms_of("") == 0


def test_a_payload_is_unpacked_as_what_it_is_and_nothing_else() -> None:
    changed = events_pb2.InvoiceChanged(owner_pubkey="aa" * 32)
    event = CloudEvent(
        event_id="1",
        type="nipmesh.invoice.v1.open",
        source="spiffe://nip.mesh/service/invoice",
        subject="i",
        time_ms=0,
        data=changed.SerializeToString(),
        schema="nipmesh.events.v1.InvoiceChanged",
    )
    assert event.service == "invoice"
    assert event.unpack(events_pb2.InvoiceChanged) == changed
    with pytest.raises(
        PayloadError, match=r"is a nipmesh\.events\.v1\.InvoiceChanged, not a nipmesh\.events\.v1\.PaymentChanged"
    ):
        event.unpack(events_pb2.PaymentChanged)
    broken = CloudEvent(event_id="1", type="t", source="s", subject="", time_ms=0, data=b"\xff")
    with pytest.raises(PayloadError, match=r"no nipmesh\.events\.v1\.InvoiceChanged"):
        broken.unpack(events_pb2.InvoiceChanged)
