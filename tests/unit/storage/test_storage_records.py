"""Idempotency, events and their watch, page tokens, housekeeping; on a real database, with the messages of the API."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nipmesh.nip.v1 import nip_service_pb2 as pb
from services.chassis import Draining, SecretBytes, ServiceError, set_current_call
from services.chassis.caller import OUTSIDE, Caller, CallInfo
from services.storage import (
    Database,
    Event,
    Fresh,
    Heartbeat,
    InProgress,
    PageTokens,
    Replay,
    RequestKey,
    abandon,
    append_event,
    begin,
    complete,
    events_after,
    find,
    new_id,
    newest_sequence,
    request_sha256,
    run_once,
    sweep,
    wait_for_response,
    watch,
)
from services.storage.places import Place

CREATE = "/nipmesh.nip.v1.NipService/CreateKey"
DAY_MS = 86_400_000


@pytest.fixture
async def database(place: Place) -> AsyncIterator[Database]:
    async with await Database.open(place) as opened:
        yield opened


@pytest.fixture
def in_call() -> Iterator[None]:
    set_current_call(CallInfo(method=CREATE, caller=Caller(subject="ab" * 32)))
    yield
    set_current_call(OUTSIDE)


def key(request_id: str = "r1", text: bytes = b"1", scope: str = "me") -> RequestKey:
    return RequestKey(scope=scope, method=CREATE, request_id=request_id, sha256=text)


def response(text: str) -> pb.LoginResponse:
    return pb.LoginResponse(access_token=text)


async def test_an_effect_happens_once(database: Database) -> None:
    done: list[str] = []

    def effect() -> pb.LoginResponse:
        done.append("x")
        return response(f"answer {len(done)}")

    results = [
        await database.write(lambda connection: run_once(connection, key(), pb.LoginResponse, effect)) for _ in range(3)
    ]
    assert [(each.access_token, replayed) for each, replayed in results] == [
        ("answer 1", False),
        ("answer 1", True),
        ("answer 1", True),
    ]


async def test_callers_and_methods_do_not_share_ids(database: Database) -> None:
    keys = [key(scope="a"), key(scope="b"), RequestKey(scope="a", method="/other", request_id="r1", sha256=b"9")]
    assert [await database.write(lambda c, each=each: begin(c, each)) for each in keys] == [Fresh()] * 3


async def test_another_request_with_the_id_is_refused(database: Database) -> None:
    await database.write(lambda connection: begin(connection, key(text=b"1")))
    with pytest.raises(ServiceError, match="REQUEST_ID_REUSED"):
        await database.write(lambda connection: begin(connection, key(text=b"2")))


async def test_an_error_leaves_no_trace(database: Database) -> None:
    def effect() -> pb.LoginResponse:
        raise ServiceError("INSUFFICIENT_BALANCE", "too little")

    with pytest.raises(ServiceError, match="INSUFFICIENT_BALANCE"):
        await database.write(lambda connection: run_once(connection, key(), pb.LoginResponse, effect))
    assert await database.read(lambda connection: find(connection, key())) is None


async def test_longer_work_in_progress_then_replayed(database: Database) -> None:
    assert await database.write(lambda connection: begin(connection, key())) == Fresh()
    assert await database.write(lambda connection: begin(connection, key())) == InProgress()
    with pytest.raises(ServiceError, match="REQUEST_IN_PROGRESS") as caught:
        await database.write(lambda connection: run_once(connection, key(), pb.LoginResponse, lambda: response("x")))
    assert caught.value.retry_delay_ms == 500
    await database.write(lambda connection: complete(connection, key(), response("done")))
    assert isinstance(await database.write(lambda connection: begin(connection, key())), Replay)


async def test_waiting_for_the_answer(database: Database) -> None:
    await database.write(lambda connection: begin(connection, key()))
    waiting = asyncio.ensure_future(wait_for_response(database, key(), pb.LoginResponse))
    await asyncio.sleep(0.05)
    await database.write(lambda connection: complete(connection, key(), response("done")))
    assert (await asyncio.wait_for(waiting, 1)).access_token == "done"


async def test_waiting_ends_before_the_deadline(database: Database) -> None:
    await database.write(lambda connection: begin(connection, key()))
    set_current_call(CallInfo(deadline_s=time.monotonic() + 0.5))
    try:
        start_s = time.monotonic()
        with pytest.raises(ServiceError, match="REQUEST_IN_PROGRESS"):
            await wait_for_response(database, key(), pb.LoginResponse)
        assert time.monotonic() - start_s < 0.5
    finally:
        set_current_call(OUTSIDE)


async def test_abandoned_work_may_be_tried_again(database: Database) -> None:
    await database.write(lambda connection: begin(connection, key()))
    await database.write(lambda connection: abandon(connection, key()))
    assert await database.write(lambda connection: begin(connection, key(text=b"2"))) == Fresh()


def test_the_hash_ignores_the_request_id_alone() -> None:
    one, two = pb.CreateKeyRequest(request_id="1"), pb.CreateKeyRequest(request_id="2")
    assert request_sha256(one) == request_sha256(two)
    assert one.request_id == "1"
    other = pb.SignEventRequest(key_id="a", request_id="1")
    assert request_sha256(other) != request_sha256(pb.SignEventRequest(key_id="b", request_id="1"))


def test_the_key_comes_from_the_running_call(in_call: None) -> None:
    made = RequestKey.of(pb.CreateKeyRequest(request_id="1"))
    assert (made.scope, made.method, made.request_id) == ("ab" * 32, CREATE, "1")


async def test_without_a_request_id_nothing_is_remembered(database: Database) -> None:
    done = []
    for _ in range(2):
        await database.write(
            lambda connection: run_once(
                connection, key(request_id=""), pb.LoginResponse, lambda: done.append(1) or response("x")
            )
        )
    assert len(done) == 2


async def add(database: Database, subject: str = "s") -> int:
    return await database.write(
        lambda connection: append_event(connection, kind="k", subject=subject, payload=subject.encode())
    )


async def test_sequences_rise_also_after_a_rollback_and_a_sweep(database: Database) -> None:
    first = await add(database)

    def fail(connection: object) -> None:
        append_event(connection, kind="k", subject="lost", payload=b"")  # type: ignore[arg-type]
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await database.write(fail)
    second = await add(database)
    await sweep(database, now_ms=time.time_ns() // 1_000_000 + 30 * DAY_MS)
    third = await add(database)
    assert 0 < first < second < third
    assert [event.sequence for event in await database.read(lambda c: events_after(c, 0))] == [third]


async def test_events_by_subject(database: Database) -> None:
    for subject in ("a", "b", "a"):
        await add(database, subject)
    events = await database.read(lambda c: events_after(c, 1, subject="a"))
    assert [(event.sequence, event.payload) for event in events] == [(3, b"a")]
    assert await database.read(newest_sequence) == 3


async def test_a_watch_resumes_follows_and_beats(database: Database) -> None:
    for subject in ("a", "b", "c"):
        await add(database, subject)
    draining = Draining()
    stream = watch(
        database,
        draining=draining,
        resume_after_sequence=1,
        matches=lambda event: event.subject != "b",
        heartbeat_s=0.2,
    )
    first, second = await anext(stream), await anext(stream)
    assert isinstance(first, Heartbeat)
    assert first.sequence == 1
    assert isinstance(second, Event)
    assert (second.sequence, second.subject) == (3, "c")
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.05)
    await add(database, "d")
    event = await asyncio.wait_for(waiting, 1)
    assert isinstance(event, Event)
    assert event.subject == "d"
    await add(database, "b")
    beat = await asyncio.wait_for(anext(stream), 1)
    assert isinstance(beat, Heartbeat)
    assert beat.sequence == 5, "it says how far it has looked"
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.01)
    draining.set()
    with pytest.raises(ServiceError, match="SERVICE_DRAINING"):
        await asyncio.wait_for(waiting, 0.1)


async def test_a_watch_from_now_skips_the_past(database: Database) -> None:
    await add(database)
    stream = watch(database, draining=Draining())
    assert (await anext(stream)).sequence == 1
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.01)
    await add(database)
    assert (await asyncio.wait_for(waiting, 1)).sequence == 2
    await stream.aclose()  # type: ignore[attr-defined]


async def test_a_resume_point_that_is_gone_or_never_was(database: Database) -> None:
    for _ in range(3):
        await add(database)
    await sweep(database, now_ms=time.time_ns() // 1_000_000 + 30 * DAY_MS)
    for sequence in (1, 2, 4):
        with pytest.raises(ServiceError, match="RESUME_POINT_EXPIRED"):
            await anext(watch(database, draining=Draining(), resume_after_sequence=sequence))
    for sequence in (0, 3):
        assert isinstance(await anext(watch(database, draining=Draining(), resume_after_sequence=sequence)), Heartbeat)


async def test_housekeeping_keeps_what_is_young_or_runs(database: Database) -> None:
    await database.write(lambda connection: begin(connection, key("running")))
    await database.write(lambda c: run_once(c, key("done"), pb.LoginResponse, lambda: response("x")))
    now_ms = time.time_ns() // 1_000_000
    assert await sweep(database, now_ms=now_ms + 2 * DAY_MS) == 0
    assert await sweep(database, now_ms=now_ms + 8 * DAY_MS) == 1
    assert await database.read(lambda c: find(c, key("running"))) == InProgress()


async def test_page_tokens_are_shared_by_replicas_and_survive(database: Database, place: Place, in_call: None) -> None:
    request = pb.ListKeysRequest(page_size=7)
    token = (await PageTokens.open(database)).next(request, ("id-7", 7))
    async with await Database.open(place) as other:
        page = (await PageTokens.open(other)).page(pb.ListKeysRequest(page_size=9, page_token=token))
    assert (page.size, page.after) == (9, ("id-7", 7))


@pytest.mark.parametrize(("asked", "given"), [(0, 50), (1, 1), (1_000, 1_000), (2_000_000_000, 1_000)])
def test_page_sizes(in_call: None, asked: int, given: int) -> None:
    assert PageTokens(SecretBytes(b"k" * 32)).page(pb.ListKeysRequest(page_size=asked)).size == given


def test_a_token_is_for_one_caller_method_and_query(in_call: None) -> None:
    tokens = PageTokens(SecretBytes(b"k" * 32))
    request = pb.ListKeysRequest()
    token = tokens.next(request, ("x",))
    asked = pb.ListKeysRequest(page_token=token)
    assert tokens.page(asked).after == ("x",)
    for wrong in (
        lambda: tokens.page(asked, scope="somebody else"),
        lambda: tokens.page(asked, method="/other"),
        lambda: PageTokens(SecretBytes(b"j" * 32)).page(asked),
    ):
        with pytest.raises(ServiceError, match="PAGE_TOKEN_INVALID"):
            wrong()


@given(st.one_of(st.text(), st.binary(max_size=60).map(lambda raw: base64.urlsafe_b64encode(raw).decode())))
def test_no_forged_token_is_taken(token: str) -> None:
    if not token:
        return
    request = pb.ListKeysRequest()
    request.page_token = token.encode("utf-8", "ignore").decode()
    if not request.page_token:
        return
    with pytest.raises(ServiceError, match="PAGE_TOKEN_INVALID"):
        PageTokens(SecretBytes(b"k" * 32)).page(request, scope="a", method="b")


def test_ids_rise() -> None:
    ids = [new_id() for _ in range(1_000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 1_000
