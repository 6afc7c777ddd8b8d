"""Requests whose lists are too long are refused before anybody looks at the items."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from buf.validate import validate_pb2
from nipmesh.invoice.v1.invoice_service_pb2 import CreateInvoiceRequest
from nipmesh.nip.v1.nip_service_pb2 import VerifyEventsRequest
from nipmesh.nip.v1.remote_signer_service_pb2 import CreateBunkerConnectionRequest
from nipmesh.operations.v1.event_service_pb2 import ReplayOutboxRequest
from nipmesh.payment.v1.payment_service_pb2 import ListPaymentsRequest
from services.chassis.errors import InvalidRequest, status_of
from services.chassis.validation import validate_request
from support.rpc_fuzz import all_methods

REQUEST, KEY = "6f1c0e2e-1111-4222-8333-444455556666", "7f1c0e2e-1111-4222-8333-444455556666"


def refused(request: Message) -> list[tuple[str, str]]:
    with pytest.raises(InvalidRequest) as error:
        validate_request(request)
    return [(violation.field, violation.reason) for violation in error.value.fields]


@pytest.mark.timeout(30)
def test_a_megabyte_of_states_does_not_take_minutes() -> None:
    """Found by the fuzzing of bytes: `unique` compares all pairs, which kept the event loop of a service for 88 s."""
    assert refused(ListPaymentsRequest(states=[1] * 1_000_000)) == [("states", "repeated.max_items")]  # type: ignore[list-item]


def test_lists_inside_of_lists_are_counted() -> None:
    request = VerifyEventsRequest()
    request.events.add()
    event = request.events.add()
    for _ in range(3):
        event.tags.add(values=["a"] * 257)
    wanted = [(f"events[1].tags[{index}].values", "repeated.max_items") for index in range(3)]
    assert refused(request) == wanted
    event.tags.extend([event.tags[0]] * 2_000)
    assert refused(request) == [("events[1].tags", "repeated.max_items")]
    request.events.extend([event] * 100)
    assert refused(request) == [("events", "repeated.max_items")]


def test_lists_of_the_right_length_are_left_to_their_other_rules() -> None:
    validate_request(ListPaymentsRequest(states=[1, 2]))  # type: ignore[list-item]
    assert refused(ListPaymentsRequest(states=[1, 1])) == [("states", "repeated.unique")]  # type: ignore[list-item]


def test_maps_are_counted() -> None:
    request = CreateInvoiceRequest(metadata={str(number): "" for number in range(100_000)})
    assert refused(request) == [("metadata", "map.max_pairs")]


def test_keys_that_callers_made_up_are_cut_and_shown_in_one_line() -> None:
    """Found by the fuzzing of bytes: an error that a header has no room for comes as another, which says nothing."""
    request = CreateInvoiceRequest(
        metadata={"\ufeff\u202e\n" + "k" * 70_000 + str(number): "\x00" * 257 for number in range(16)}
    )
    with pytest.raises(InvalidRequest) as error:
        validate_request(request)
    fields = [each.field for each in error.value.fields if each.field.startswith("metadata")]
    assert 3 < len(fields) < 50, "no more than a header has room for"
    assert all(field.startswith('metadata["\\ufeff\\u202e\\nkkk') and len(field) < 80 for field in fields)
    assert error.value.message.isprintable()
    assert status_of(error.value).ByteSize() < 8_000


def test_a_rule_of_the_whole_request_names_no_field() -> None:
    with pytest.raises(InvalidRequest) as error:
        validate_request(CreateInvoiceRequest(description="tea", description_hash="ab" * 32))
    assert error.value.message.startswith("description, description_hash and zap_request exclude each other")


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("time", Timestamp(seconds=5, nanos=-1), "timestamp.malformed"),
        ("time", Timestamp(nanos=1_000_000_000), "timestamp.malformed"),
        ("time", Timestamp(nanos=999_999_999), ""),
        ("ttl", Duration(seconds=60, nanos=-1), "duration.malformed"),
        ("ttl", Duration(seconds=60, nanos=1_000_000_000), "duration.malformed"),
        ("ttl", Duration(seconds=60, nanos=1), ""),
    ],
)
def test_times_that_are_none_are_refused(field: str, value: Message, reason: str) -> None:
    """Found by the fuzzing of bytes: whoever reads such a time is in for an exception."""
    request = (
        ReplayOutboxRequest() if field == "time" else CreateBunkerConnectionRequest(request_id=REQUEST, key_id=KEY)
    )
    getattr(request, field).CopyFrom(value)
    if reason:
        assert refused(request) == [(field, reason)]
    else:
        validate_request(request)


def test_times_inside_of_lists_are_found() -> None:
    request = CreateBunkerConnectionRequest(request_id=REQUEST, key_id=KEY)
    for nanos in (0, -1):
        request.permissions.add(method=1, effect=1, expire_time=Timestamp(seconds=5, nanos=nanos))
    assert refused(request) == [("permissions[1].expire_time", "timestamp.malformed")]


def fields_of(descriptor: Descriptor, above: frozenset[str] = frozenset()) -> Iterator[FieldDescriptor]:
    for field in descriptor.fields:
        yield field
        if field.message_type is not None and field.message_type.full_name not in above:
            yield from fields_of(field.message_type, above | {descriptor.full_name})


def test_every_number_and_time_of_a_request_fits_into_a_database() -> None:
    """Found by the fuzzing of bytes: what does not was INTERNAL."""
    unlimited = set()
    found = {field for method in all_methods() for field in fields_of(method.input_type)}
    for field in found:
        rule = field.GetOptions().Extensions[validate_pb2.field]
        if field.type in (FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_FIXED64):
            number = rule.repeated.items.uint64 if field.is_repeated else rule.uint64
            limit = number.lte if number.HasField("lte") else number.lt - 1 if number.HasField("lt") else 2**64
            unlimited |= {field.full_name} if limit >= 2**63 else set()
        elif field.message_type is not None and field.message_type.full_name == "google.protobuf.Timestamp":
            limited = rule.timestamp.HasField("lt") and rule.timestamp.HasField("gte")
            unlimited |= set() if limited else {field.full_name}
    assert len(found) > 100
    assert not unlimited


def test_every_list_of_a_request_is_limited() -> None:
    found = {field for method in all_methods() for field in fields_of(method.input_type) if field.is_repeated}
    assert len(found) >= 5
    rules = {field.full_name: field.GetOptions().Extensions[validate_pb2.field] for field in found}
    unlimited = {name for name, rule in rules.items() if not (rule.repeated.max_items or rule.map.max_pairs)}
    assert not unlimited
