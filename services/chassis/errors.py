"""The errors of a service, and how they travel: google.rpc.Status with ErrorInfo, RetryInfo, BadRequest, PreconditionFailure.

The tree. ServiceError is all that a servicer raises (the rest becomes INTERNAL at the border); the reason tells the kinds apart, on both
ends of the wire. StartError is what an operator can mend: `run` prints it and exits with 2::

    Exception
    ├── ServiceError              reason, code, message, metadata, details
    │   └── InvalidRequest        REQUEST_INVALID, with the violations of its fields
    └── StartError
        ├── SecretFileError       chassis.secret
        ├── ListenError           chassis.sockets
        ├── AccessTableError      chassis.server
        ├── RotationError         nip.rotation
        ├── NoEgressError         chassis.client
        ├── MigrationError        storage.migrations
        └── BackupError           storage.backup

The reasons are the names of nipmesh.common.v1.ErrorReason without their prefix; a test compares both, codes included.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

DOMAIN: Final = "nipmesh"
"""`ErrorInfo.domain` of every error of this mesh."""
STATUS_DETAILS_KEY: Final = "grpc-status-details-bin"
"""Trailing metadata that carries google.rpc.Status."""
MESSAGE_CHARACTERS_MAX: Final = 1_000
"""Longest error text: texts become HTTP/2 headers, whose lists are limited to 8 KiB by default."""
VIOLATIONS_MAX: Final = 50
"""Most violations reported at once: the details become a header, see above."""


class Reason(enum.StrEnum):
    """Why a call failed: nipmesh.common.v1.ErrorReason without the prefix."""

    REQUEST_INVALID = "REQUEST_INVALID"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    REQUEST_IN_PROGRESS = "REQUEST_IN_PROGRESS"
    PAGE_TOKEN_INVALID = "PAGE_TOKEN_INVALID"  # noqa: S105  # the name of an error
    NOT_AUTHENTICATED = "NOT_AUTHENTICATED"
    TOKEN_INVALID = "TOKEN_INVALID"  # noqa: S105  # the name of an error
    AUTHORIZATION_INVALID = "AUTHORIZATION_INVALID"
    LOGIN_REPLAYED = "LOGIN_REPLAYED"
    OPERATOR_REQUIRED = "OPERATOR_REQUIRED"
    CALLER_NOT_ALLOWED = "CALLER_NOT_ALLOWED"
    KEY_NOT_FOUND = "KEY_NOT_FOUND"
    KEY_INVALID = "KEY_INVALID"
    KEY_ALREADY_EXISTS = "KEY_ALREADY_EXISTS"
    KEY_NOT_ACTIVE = "KEY_NOT_ACTIVE"
    EVENT_INVALID = "EVENT_INVALID"
    INVOICE_NOT_FOUND = "INVOICE_NOT_FOUND"
    INVOICE_ALREADY_SETTLED = "INVOICE_ALREADY_SETTLED"
    INVOICE_ALREADY_CANCELED = "INVOICE_ALREADY_CANCELED"
    INVOICE_EXPIRED = "INVOICE_EXPIRED"
    INVOICE_LOCKED = "INVOICE_LOCKED"
    INVOICE_NOT_LOCKED = "INVOICE_NOT_LOCKED"
    INVOICE_AMOUNT_MISMATCH = "INVOICE_AMOUNT_MISMATCH"
    INVOICE_NOT_ACCEPTED = "INVOICE_NOT_ACCEPTED"
    PREIMAGE_MISMATCH = "PREIMAGE_MISMATCH"
    PAYMENT_HASH_USED = "PAYMENT_HASH_USED"
    INVOICE_NOT_PAYABLE = "INVOICE_NOT_PAYABLE"
    NETWORK_NOT_SIMULATED = "NETWORK_NOT_SIMULATED"
    PAYMENT_REQUEST_INVALID = "PAYMENT_REQUEST_INVALID"
    PAYMENT_NOT_FOUND = "PAYMENT_NOT_FOUND"
    PAYMENT_IN_FLIGHT = "PAYMENT_IN_FLIGHT"
    PAYMENT_ALREADY_PAID = "PAYMENT_ALREADY_PAID"
    PAYMENT_NOT_SUCCEEDED = "PAYMENT_NOT_SUCCEEDED"
    PAYMENT_AMOUNT_REQUIRED = "PAYMENT_AMOUNT_REQUIRED"
    PAYMENT_AMOUNT_NOT_ALLOWED = "PAYMENT_AMOUNT_NOT_ALLOWED"
    INSUFFICIENT_BALANCE = "INSUFFICIENT_BALANCE"
    REFUND_EXCEEDS_PAYMENT = "REFUND_EXCEEDS_PAYMENT"
    REFUND_NOT_ALLOWED = "REFUND_NOT_ALLOWED"
    PAYMENT_NOT_STUCK = "PAYMENT_NOT_STUCK"
    ROUTE_NOT_FOUND = "ROUTE_NOT_FOUND"
    ACCOUNT_NOT_FOUND = "ACCOUNT_NOT_FOUND"
    ACCOUNT_FROZEN = "ACCOUNT_FROZEN"
    BALANCE_LIMIT_EXCEEDED = "BALANCE_LIMIT_EXCEEDED"
    TRANSFER_NOT_FOUND = "TRANSFER_NOT_FOUND"
    CREDIT_NOT_HELD = "CREDIT_NOT_HELD"
    CREDIT_POSTED = "CREDIT_POSTED"
    CREDIT_VOIDED = "CREDIT_VOIDED"
    ACCOUNT_CLOSED = "ACCOUNT_CLOSED"
    ACCOUNT_NOT_EMPTY = "ACCOUNT_NOT_EMPTY"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    TRANSFER_NOT_PENDING = "TRANSFER_NOT_PENDING"
    TRANSFER_RESOLVED = "TRANSFER_RESOLVED"
    TRANSFER_EXCEEDS_PENDING = "TRANSFER_EXCEEDS_PENDING"
    CONSUMER_NOT_FOUND = "CONSUMER_NOT_FOUND"
    CONSUMER_CANNOT_REWIND = "CONSUMER_CANNOT_REWIND"
    RESUME_POINT_EXPIRED = "RESUME_POINT_EXPIRED"
    SERVICE_DRAINING = "SERVICE_DRAINING"
    OVERLOADED = "OVERLOADED"
    BACKEND_UNAVAILABLE = "BACKEND_UNAVAILABLE"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    INTERNAL = "INTERNAL"
    TOO_MANY_STREAMS = "TOO_MANY_STREAMS"
    STORAGE_FULL = "STORAGE_FULL"
    AUTHORIZATION_REPLAYED = "AUTHORIZATION_REPLAYED"
    CHALLENGE_INVALID = "CHALLENGE_INVALID"
    CHALLENGE_USED = "CHALLENGE_USED"
    RELAY_NOT_TRUSTED = "RELAY_NOT_TRUSTED"
    ZAP_REQUEST_INVALID = "ZAP_REQUEST_INVALID"
    ZAP_RECEIPT_NOT_FOUND = "ZAP_RECEIPT_NOT_FOUND"
    KEY_LOCKED = "KEY_LOCKED"
    KEY_NOT_LOCKED = "KEY_NOT_LOCKED"
    PASSWORD_WRONG = "PASSWORD_WRONG"  # noqa: S105  # the name of an error
    PASSWORD_ATTEMPTS_EXCEEDED = "PASSWORD_ATTEMPTS_EXCEEDED"  # noqa: S105  # the name of an error
    NCRYPTSEC_TOO_COSTLY = "NCRYPTSEC_TOO_COSTLY"
    DECRYPTION_FAILED = "DECRYPTION_FAILED"
    PAYLOAD_VERSION_UNSUPPORTED = "PAYLOAD_VERSION_UNSUPPORTED"
    PEER_INVALID = "PEER_INVALID"
    NIP19_INVALID = "NIP19_INVALID"
    RELAY_INVALID = "RELAY_INVALID"
    SIGNER_CONNECTION_NOT_FOUND = "SIGNER_CONNECTION_NOT_FOUND"
    SIGNER_CONNECTION_ENDED = "SIGNER_CONNECTION_ENDED"
    SIGNER_REQUEST_NOT_FOUND = "SIGNER_REQUEST_NOT_FOUND"
    NOSTRCONNECT_URI_INVALID = "NOSTRCONNECT_URI_INVALID"
    REMOTE_SIGNER_RELAY_INVALID = "REMOTE_SIGNER_RELAY_INVALID"
    REMOTE_SIGNER_PERMISSIONS_INVALID = "REMOTE_SIGNER_PERMISSIONS_INVALID"
    TOO_MANY_SIGNER_CONNECTIONS = "TOO_MANY_SIGNER_CONNECTIONS"
    SIGNER_RATE_EXCEEDED = "SIGNER_RATE_EXCEEDED"
    WALLET_CONNECTION_NOT_FOUND = "WALLET_CONNECTION_NOT_FOUND"
    WALLET_CONNECTION_REVOKED = "WALLET_CONNECTION_REVOKED"
    TOO_MANY_WALLET_CONNECTIONS = "TOO_MANY_WALLET_CONNECTIONS"
    WALLET_RELAY_NOT_ALLOWED = "WALLET_RELAY_NOT_ALLOWED"
    WALLET_RELAYS_NOT_CONFIGURED = "WALLET_RELAYS_NOT_CONFIGURED"


PUSH_BACK_KEY: Final = "grpc-retry-pushback-ms"
"""Trailing metadata that gRPC libraries and sidecars obey: repeat in so many ms; negative: do not repeat (gRFC A6)."""
PUSH_BACK_NEVER: Final = "-1"
WAIT_KEY: Final = "retry-after"
"""The same in whole seconds, from one second on: Envoy waits by no other unit."""

_Code = grpc.StatusCode
_CODES_OTHER_THAN_PRECONDITION: Final[Mapping[Reason, grpc.StatusCode]] = {
    Reason.REQUEST_INVALID: _Code.INVALID_ARGUMENT,
    Reason.REQUEST_ID_REUSED: _Code.INVALID_ARGUMENT,
    Reason.PAGE_TOKEN_INVALID: _Code.INVALID_ARGUMENT,
    Reason.KEY_INVALID: _Code.INVALID_ARGUMENT,
    Reason.EVENT_INVALID: _Code.INVALID_ARGUMENT,
    Reason.INVOICE_AMOUNT_MISMATCH: _Code.INVALID_ARGUMENT,
    Reason.PREIMAGE_MISMATCH: _Code.INVALID_ARGUMENT,
    Reason.PAYMENT_REQUEST_INVALID: _Code.INVALID_ARGUMENT,
    Reason.PAYMENT_AMOUNT_REQUIRED: _Code.INVALID_ARGUMENT,
    Reason.PAYMENT_AMOUNT_NOT_ALLOWED: _Code.INVALID_ARGUMENT,
    Reason.NCRYPTSEC_TOO_COSTLY: _Code.INVALID_ARGUMENT,
    Reason.DECRYPTION_FAILED: _Code.INVALID_ARGUMENT,
    Reason.PAYLOAD_VERSION_UNSUPPORTED: _Code.INVALID_ARGUMENT,
    Reason.PEER_INVALID: _Code.INVALID_ARGUMENT,
    Reason.NIP19_INVALID: _Code.INVALID_ARGUMENT,
    Reason.RELAY_INVALID: _Code.INVALID_ARGUMENT,
    Reason.ZAP_REQUEST_INVALID: _Code.INVALID_ARGUMENT,
    Reason.NOSTRCONNECT_URI_INVALID: _Code.INVALID_ARGUMENT,
    Reason.REMOTE_SIGNER_RELAY_INVALID: _Code.INVALID_ARGUMENT,
    Reason.REMOTE_SIGNER_PERMISSIONS_INVALID: _Code.INVALID_ARGUMENT,
    Reason.REQUEST_IN_PROGRESS: _Code.ABORTED,
    Reason.NOT_AUTHENTICATED: _Code.UNAUTHENTICATED,
    Reason.TOKEN_INVALID: _Code.UNAUTHENTICATED,
    Reason.AUTHORIZATION_INVALID: _Code.UNAUTHENTICATED,
    Reason.LOGIN_REPLAYED: _Code.UNAUTHENTICATED,
    Reason.AUTHORIZATION_REPLAYED: _Code.UNAUTHENTICATED,
    Reason.CHALLENGE_INVALID: _Code.UNAUTHENTICATED,
    Reason.CHALLENGE_USED: _Code.UNAUTHENTICATED,
    Reason.OPERATOR_REQUIRED: _Code.PERMISSION_DENIED,
    Reason.CALLER_NOT_ALLOWED: _Code.PERMISSION_DENIED,
    Reason.REFUND_NOT_ALLOWED: _Code.PERMISSION_DENIED,
    Reason.PASSWORD_WRONG: _Code.PERMISSION_DENIED,
    Reason.RELAY_NOT_TRUSTED: _Code.PERMISSION_DENIED,
    Reason.KEY_NOT_FOUND: _Code.NOT_FOUND,
    Reason.INVOICE_NOT_FOUND: _Code.NOT_FOUND,
    Reason.PAYMENT_NOT_FOUND: _Code.NOT_FOUND,
    Reason.ACCOUNT_NOT_FOUND: _Code.NOT_FOUND,
    Reason.TRANSFER_NOT_FOUND: _Code.NOT_FOUND,
    Reason.ZAP_RECEIPT_NOT_FOUND: _Code.NOT_FOUND,
    Reason.CONSUMER_NOT_FOUND: _Code.NOT_FOUND,
    Reason.CONSUMER_CANNOT_REWIND: _Code.FAILED_PRECONDITION,
    Reason.SIGNER_CONNECTION_NOT_FOUND: _Code.NOT_FOUND,
    Reason.SIGNER_REQUEST_NOT_FOUND: _Code.NOT_FOUND,
    Reason.KEY_ALREADY_EXISTS: _Code.ALREADY_EXISTS,
    Reason.PAYMENT_HASH_USED: _Code.ALREADY_EXISTS,
    Reason.PAYMENT_IN_FLIGHT: _Code.ALREADY_EXISTS,
    Reason.PAYMENT_ALREADY_PAID: _Code.ALREADY_EXISTS,
    Reason.RESUME_POINT_EXPIRED: _Code.OUT_OF_RANGE,
    Reason.SERVICE_DRAINING: _Code.UNAVAILABLE,
    Reason.OVERLOADED: _Code.UNAVAILABLE,
    Reason.BACKEND_UNAVAILABLE: _Code.UNAVAILABLE,
    Reason.DEADLINE_EXCEEDED: _Code.DEADLINE_EXCEEDED,
    Reason.INTERNAL: _Code.INTERNAL,
    Reason.TOO_MANY_STREAMS: _Code.RESOURCE_EXHAUSTED,
    Reason.STORAGE_FULL: _Code.RESOURCE_EXHAUSTED,
    Reason.QUOTA_EXCEEDED: _Code.RESOURCE_EXHAUSTED,
    Reason.PASSWORD_ATTEMPTS_EXCEEDED: _Code.RESOURCE_EXHAUSTED,
    Reason.TOO_MANY_SIGNER_CONNECTIONS: _Code.RESOURCE_EXHAUSTED,
    Reason.SIGNER_RATE_EXCEEDED: _Code.RESOURCE_EXHAUSTED,
    Reason.WALLET_RELAY_NOT_ALLOWED: _Code.INVALID_ARGUMENT,
    Reason.WALLET_CONNECTION_NOT_FOUND: _Code.NOT_FOUND,
    Reason.TOO_MANY_WALLET_CONNECTIONS: _Code.RESOURCE_EXHAUSTED,
}

CODE_OF: Final[Mapping[Reason, grpc.StatusCode]] = {
    reason: _CODES_OTHER_THAN_PRECONDITION.get(reason, _Code.FAILED_PRECONDITION) for reason in Reason
}
"""The gRPC status code of each reason; what is not listed above is FAILED_PRECONDITION."""


SECOND_MS: Final = 1_000
STORAGE_RETRY_DELAY_MS: Final = 10 * SECOND_MS
"""When to try again after STORAGE_FULL: a person has to do something."""
DEPENDENCY_RETRY_DELAY_MS: Final = SECOND_MS
"""What a client is told to wait: a dependency that retries did not reach needs longer than one of our own replicas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldViolation:
    """What is wrong with one field of a request; `field` is its path, for example `items[2].name`, empty for the whole of it."""

    field: str
    description: str
    reason: str = ""

    def __str__(self) -> str:
        """For a person."""
        return f"{self.field}: {self.description}" if self.field else self.description


@dataclass(frozen=True, slots=True, kw_only=True)
class PreconditionViolation:
    """A state that stands in the way: `kind` (UPPER_SNAKE), `subject` (an id), `description`."""

    kind: str
    subject: str
    description: str


class StartError(Exception):
    """The service cannot start (or go on) as it is set up; the text says what is wrong and what to do."""


class ServiceError(Exception):
    """An error that the caller is meant to see. Raise it anywhere below a servicer; the border renders it.

    `code` follows from the reason unless given. `metadata` goes into ErrorInfo (small strings, never a secret).
    `retry_delay_ms` becomes RetryInfo and the push-back, violations BadRequest and PreconditionFailure. `from_dependency` tells the
    callers' sidecars that another replica would fail alike: they neither repeat the call nor blame this one, and no gRPC library
    repeats it by itself; RetryInfo is for whoever decides to try again.
    """

    def __init__(
        self,
        reason: Reason | str,
        message: str,
        *,
        code: grpc.StatusCode | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_delay_ms: int | None = None,
        fields: Iterable[FieldViolation] = (),
        preconditions: Iterable[PreconditionViolation] = (),
        from_dependency: bool = False,
    ) -> None:
        """Raise ValueError when `reason` is none of nipmesh.common.v1.ErrorReason."""
        self.reason = Reason(reason)
        super().__init__(f"{self.reason}: {message}")
        self.message = message[:MESSAGE_CHARACTERS_MAX]
        self.code = code or CODE_OF[self.reason]
        self.metadata = dict(metadata or {})
        self.retry_delay_ms = retry_delay_ms
        self.fields = tuple(fields)[:VIOLATIONS_MAX]
        self.preconditions = tuple(preconditions)[:VIOLATIONS_MAX]
        self.from_dependency = from_dependency


class InvalidRequest(ServiceError):  # noqa: N818  # reads as what it is where it is raised
    """REQUEST_INVALID: `InvalidRequest(FieldViolation(field="amount_msat", description="must be positive"))`."""

    def __init__(self, *fields: FieldViolation, message: str = "") -> None:
        """Without a message, the text names the first violation."""
        text = message or "; ".join(map(str, fields[:3])) or "invalid request"
        super().__init__(Reason.REQUEST_INVALID, text, fields=fields)


def not_found(reason: Reason | str, subject: str) -> ServiceError:
    """NOT_FOUND for `subject` (say "invoice"): the same text whether it is someone else's or nobody's."""
    return ServiceError(reason, f"no such {subject}")


def precondition_failed(reason: Reason | str, message: str, *, subject: str) -> ServiceError:
    """FAILED_PRECONDITION with a PreconditionFailure that names `subject` (an id)."""
    violation = PreconditionViolation(kind=str(reason), subject=subject, description=message)
    return ServiceError(reason, message, preconditions=(violation,))


def unavailable(
    message: str, *, reason: Reason = Reason.BACKEND_UNAVAILABLE, retry_delay_ms: int = 200
) -> ServiceError:
    """UNAVAILABLE with RetryInfo and the push-back."""
    return ServiceError(reason, message, retry_delay_ms=retry_delay_ms)


def storage_full() -> ServiceError:
    """RESOURCE_EXHAUSTED: nothing was written, and until somebody makes room nothing can be."""
    return ServiceError(Reason.STORAGE_FULL, "there is no room to store this", retry_delay_ms=STORAGE_RETRY_DELAY_MS)


def dependency_failed(message: str) -> ServiceError:
    """UNAVAILABLE because of a service that this one calls, whose sidecar has repeated the call already where that is safe."""
    return ServiceError(
        Reason.BACKEND_UNAVAILABLE, message, retry_delay_ms=DEPENDENCY_RETRY_DELAY_MS, from_dependency=True
    )


def status_of(error: ServiceError) -> status_pb2.Status:
    """The google.rpc.Status of an error: ErrorInfo always, the other details when there are any."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    details: list[Message] = [info]
    if error.retry_delay_ms is not None:
        delay = Duration()
        delay.FromMilliseconds(error.retry_delay_ms)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if error.fields:
        details.append(_bad_request(error.fields))
    if error.preconditions:
        details.append(_precondition_failure(error.preconditions))
    return status_pb2.Status(
        code=error.code.value[0], message=error.message, details=[_packed(each) for each in details]
    )


def push_back_of(error: ServiceError) -> tuple[tuple[str, str], ...]:
    """The trailing metadata by which sidecars and gRPC libraries decide whether and when they repeat the call by themselves."""
    if error.from_dependency:
        return ((PUSH_BACK_KEY, PUSH_BACK_NEVER),)
    if error.retry_delay_ms is None:
        return ()
    push_back = (PUSH_BACK_KEY, str(error.retry_delay_ms))
    if error.retry_delay_ms < SECOND_MS:
        return (push_back,)
    return (push_back, (WAIT_KEY, str(-(-error.retry_delay_ms // SECOND_MS))))


def _packed(message: Message) -> AnyMessage:
    """The message as google.protobuf.Any."""
    packed = AnyMessage()
    packed.Pack(message)
    return packed


def _bad_request(fields: Iterable[FieldViolation]) -> error_details_pb2.BadRequest:
    """BadRequest with one violation per field."""
    violation = error_details_pb2.BadRequest.FieldViolation
    return error_details_pb2.BadRequest(
        field_violations=[
            violation(field=one.field, description=one.description, reason=one.reason.upper().replace(".", "_"))
            for one in fields
        ]
    )


def _precondition_failure(violations: Iterable[PreconditionViolation]) -> error_details_pb2.PreconditionFailure:
    """PreconditionFailure with one violation each."""
    violation = error_details_pb2.PreconditionFailure.Violation
    return error_details_pb2.PreconditionFailure(
        violations=[violation(type=one.kind, subject=one.subject, description=one.description) for one in violations]
    )


def rich_status(error: grpc.RpcError) -> status_pb2.Status | None:
    """The google.rpc.Status that a failed call carries, or None when it has none that can be read."""
    trailing = error.trailing_metadata() if isinstance(error, grpc.aio.AioRpcError | grpc.Call) else None
    for key, value in trailing or ():
        if key == STATUS_DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None


def reason_of(error: grpc.RpcError) -> str | None:
    """The reason of a failed call of this mesh ("INVOICE_NOT_FOUND"); None when it carries no ErrorInfo of our domain.

    A sidecar's own answers (nobody there, refused, timed out) have none: decide by code then.
    """
    status = rich_status(error)
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info) and info.domain == DOMAIN:
            return str(info.reason)
    return None


def retry_delay_ms_of(error: grpc.RpcError) -> int | None:
    """RetryInfo's delay of a failed call in ms, or None."""
    status = rich_status(error)
    for detail in status.details if status else ():
        info = error_details_pb2.RetryInfo()
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info):
            return int(info.retry_delay.ToMilliseconds())
    return None
