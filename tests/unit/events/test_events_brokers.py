"""What the adapters for RabbitMQ and Kafka work out by themselves: bindings, attributes, positions, shares."""

from __future__ import annotations

import ssl

import pytest
from aiokafka import ConsumerRecord
from aiokafka.coordinator.protocol import ConsumerProtocolMemberMetadata

from services.events.bus import BusSettingsError
from services.events.cloud_event import attributes_of, event_of_attributes
from services.events.connecting import explained_failure, place_of
from services.events.kafka.groups import Rewinding, Sharing
from services.events.kafka.offsets import Progress
from services.events.kafka.publishing import record_headers
from services.events.kafka.subscribing import read_event
from services.events.rabbitmq.publishing import message_of
from services.events.rabbitmq.subscribing import binding_of
from support.events import event


@pytest.mark.parametrize(
    ("pattern", "binding"),
    [
        ("a.b.settled", "*.a.b.settled"),
        ("a.*.settled", "*.a.*.settled"),
        ("a.>", "*.a.*.#"),
        (">", "*.*.#"),
    ],
)
def test_bindings_mean_what_filters_mean(pattern: str, binding: str) -> None:
    assert binding_of(pattern) == binding


def test_attributes_travel_as_they_are() -> None:
    sent = event(
        1, subject='straße 7 "50%"', traceparent=f"00-{'ab' * 16}-{'cd' * 8}-01", extensions=(("expirytime", "x y"),)
    )
    assert event_of_attributes(attributes_of(sent), sent.traceparent, sent.data) == sent
    kafka = dict(record_headers(sent))
    assert kafka["ce_subject"] == 'straße 7 "50%"'.encode()
    assert kafka["ce_specversion"] == b"1.0"
    assert kafka["content-type"] == b"application/protobuf"
    amqp = message_of(sent)
    assert amqp.headers["cloudEvents:subject"] == 'straße 7 "50%"'
    assert (amqp.content_type, amqp.message_id) == ("application/protobuf", "event-1")
    assert "cloudEvents:datacontenttype" not in amqp.headers


def record(headers: list[tuple[str, bytes]], value: bytes | None = b"x") -> ConsumerRecord[bytes, bytes]:
    return ConsumerRecord(
        topic="nip",
        partition=2,
        offset=7,
        timestamp=1_790_000_000_123,
        timestamp_type=0,
        key=None,
        value=value,
        checksum=None,
        serialized_key_size=-1,
        serialized_value_size=1,
        headers=tuple(headers),
    )


def test_a_record_that_is_no_event_has_an_id_by_its_place() -> None:
    found, problem = read_event(record([], None))
    assert problem == "the message is no CloudEvent 1.0 in binary mode"
    assert (found.event_id, found.time_ms, found.data) == ("nip-2-7", 1_790_000_000_123, b"")
    sent = event(1)
    assert read_event(record(record_headers(sent), sent.data)) == (sent, "")
    without_id = [each for each in record_headers(sent) if each[0] != "ce_id"]
    assert read_event(record(without_id))[1] == "the event has no ce-id"


def test_what_is_done_out_of_order_waits_for_what_is_not() -> None:
    progress = Progress(5)
    assert progress.position == 5
    assert [progress.delivered(offset) for offset in (5, 6, 8)] == [1, 1, 1]
    progress.skipped(7)
    progress.done(6)
    progress.done(8)
    assert (progress.position, progress.in_flight) == (5, 1)
    progress.done(5)
    assert (progress.position, progress.in_flight) == (9, 0)


def test_what_is_given_back_is_read_again_and_counted() -> None:
    progress = Progress(0, 2)
    assert [progress.delivered(offset) for offset in (0, 1, 2)] == [3, 3, 3]
    progress.done(0)
    progress.back_to(1)
    assert progress.position == 1
    assert progress.delivered(1) == 4
    progress.committed = 1
    assert progress.delivered(3) == 1


class Cluster:
    def partitions_for_topic(self, topic: str) -> set[int]:
        assert topic == "nip"
        return set(range(6))


def test_partitions_are_shared_evenly_and_all_go_to_whoever_rewinds() -> None:
    usual = ConsumerProtocolMemberMetadata(0, ["nip"], b"")
    shares = Sharing.assign(Cluster(), {"a": usual, "b": usual})
    numbers = {name: [number for _, found in share.assignment for number in found] for name, share in shares.items()}
    assert numbers == {"a": [0, 1, 2], "b": [3, 4, 5]}
    rewinding = Rewinding.metadata(["nip"])
    shares = Sharing.assign(Cluster(), {"a": usual, "b": rewinding, "c": rewinding})
    assert [share.assignment for share in shares.values()] == [[], [("nip", [0, 1, 2, 3, 4, 5])], []]
    assert Rewinding.name == Sharing.name


def test_places() -> None:
    assert place_of("a.example.org", 5672) == ("a.example.org", 5672)
    assert place_of("127.0.0.1:1", 5672) == ("127.0.0.1", 1)
    assert place_of("[::1]:7", 5672) == ("::1", 7)
    assert place_of("[::1]", 5672) == ("::1", 5672)
    for wrong in ("", ":1", "a:", "a:0", "a:65536", "a:x"):
        with pytest.raises(BusSettingsError, match="is not a host and a port"):
            place_of(wrong, 5672)


def test_failures_are_found_behind_what_a_client_raises() -> None:
    outer = RuntimeError("client")
    outer.__cause__ = ConnectionRefusedError(111, "no")
    assert explained_failure(outer) == "nobody listens there"
    assert explained_failure(TimeoutError()) == "the server does not answer"
    assert explained_failure(ssl.SSLError(1, "broken")).startswith("TLS fails")
    assert explained_failure(RuntimeError("else")) == ""
