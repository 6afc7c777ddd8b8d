"""The ledger as a chain of hashes: whoever knows its newest hash can tell whether any entry before was changed, removed or put in.

Entries are transfers and account events, numbered 1, 2, 3, … without gaps in one sequence. With any SHA-256::

    sha256(0) = SHA-256("nipmesh ledger 1")                        GENESIS
    sha256(n) = SHA-256(sha256(n - 1) || bytes of entry n)

The bytes of an entry are its fields in this order, each as its length in 4 bytes, big endian, then its content::

    transfer        "transfer", number, transfer_id, kind, debit_account_id, credit_account_id, amount_msat, purpose,
                    pending_transfer_id, payment_id, reference, create_time_ms
    account_event   "account_event", number, account_id, kind, actor, reason, details, create_time_ms

Texts are UTF-8, NULL is the empty text, integers are 8 bytes, big endian, two's complement. `details` is JSON with sorted keys and without
spaces, hashed as it stands: of OPENED `{"must_cover":1,"owner":"…"}`, of QUOTA_SET the three limits or null, else empty.
`create_time_ms` never falls from one entry to the next, except between entries that are older than the chain.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from services.payment.domain.model import (
    NODE_ACCOUNT,
    Account,
    AccountEvent,
    Purpose,
    Quota,
    Transfer,
    TransferKind,
)

GENESIS: Final = hashlib.sha256(b"nipmesh ledger 1").digest()
"""What the first entry is chained to."""
HASH_BYTES: Final = 32
"""Of SHA-256."""
_INTEGER_LENGTH: Final = (8).to_bytes(4, "big")


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The newest entry; number 0 is the empty ledger."""

    number: int = 0
    sha256: bytes = GENESIS
    create_time_ms: int = 0

    def __str__(self) -> str:
        """As operators note it: `number:hash`."""
        return f"{self.number}:{self.sha256.hex()}"


def transfer_bytes(transfer: Transfer, number: int, create_time_ms: int) -> bytes:
    """The bytes that are hashed of a transfer with this number and time."""
    return placed(transfer_body(transfer), number, create_time_ms)


def transfer_body(transfer: Transfer) -> bytes:
    """What is hashed of a transfer between its number and its time: all that does not depend on its place."""
    return _packed(
        transfer.transfer_id,
        transfer.kind,
        transfer.debit_account_id,
        transfer.credit_account_id,
        transfer.amount_msat,
        transfer.purpose,
        transfer.pending_transfer_id,
        transfer.payment_id,
        transfer.reference,
    )


def hold_body(transfer_id: str, payer_account_id: str, amount_msat: int, payment_id: str) -> bytes:
    """`transfer_body` of a payment's first reservation, with all that these have in common made before: every payment has one."""
    return b"".join(
        (
            _packed_text(transfer_id),
            _HOLD_KIND,
            _packed_text(payer_account_id),
            _HOLD_CREDIT,
            amount_msat.to_bytes(8, "big", signed=True),
            _HOLD_PURPOSE,
            _packed_text(payment_id),
            _HOLD_END,
        )
    )


def placed(body: bytes, number: int, create_time_ms: int) -> bytes:
    """The bytes that are hashed of a transfer, from its `transfer_body` and its place."""
    place, time = number.to_bytes(8, "big", signed=True), create_time_ms.to_bytes(8, "big", signed=True)
    return b"".join((_TRANSFER, place, body, _INTEGER_LENGTH, time))


def account_event_bytes(event: AccountEvent, number: int, create_time_ms: int) -> bytes:
    """The bytes that are hashed of an account event with this number and time."""
    return _packed(
        "account_event",
        number,
        event.account_id,
        event.kind,
        event.actor,
        event.reason,
        event.details,
        create_time_ms,
    )


def recorded_sha256(previous_sha256: bytes, entry: Transfer | AccountEvent) -> bytes:
    """The hash that a recorded entry must have when it follows the one with `previous_sha256`."""
    return entry_sha256(previous_sha256, entry, entry.number, entry.create_time_ms)


def entry_sha256(previous_sha256: bytes, entry: Transfer | AccountEvent, number: int, create_time_ms: int) -> bytes:
    """The hash of an entry that is to be recorded with this number and time."""
    assert len(previous_sha256) == HASH_BYTES
    if isinstance(entry, Transfer):
        body = transfer_bytes(entry, number, create_time_ms)
    else:
        body = account_event_bytes(entry, number, create_time_ms)
    return hashlib.sha256(previous_sha256 + body).digest()


def opened_details(account: Account) -> str:
    """The details of an account's OPENED: what never changes about it."""
    return _json({"must_cover": int(account.must_cover), "owner": account.owner})


def quota_details(quota: Quota) -> str:
    """The details of QUOTA_SET."""
    limits = {
        "day_msat_max": quota.day_msat_max,
        "payment_msat_max": quota.payment_msat_max,
        "pending_msat_max": quota.pending_msat_max,
    }
    return _json(limits)


def quota_of_details(details: str) -> Quota:
    """What `quota_details` wrote."""
    return Quota(**json.loads(details))


def _json(values: Mapping[str, int | str | None]) -> str:
    return json.dumps(values, separators=(",", ":"), sort_keys=True)


def _packed_text(value: str) -> bytes:
    text = value.encode()
    return len(text).to_bytes(4, "big") + text


def _packed(*values: str | int) -> bytes:
    parts: list[bytes] = []
    for value in values:
        if isinstance(value, str):
            parts.append(_packed_text(value))
        else:
            parts += (_INTEGER_LENGTH, value.to_bytes(8, "big", signed=True))
    return b"".join(parts)


_TRANSFER: Final = _packed("transfer") + _INTEGER_LENGTH
"""What the bytes of every transfer begin with, up to its number."""
_HOLD_KIND: Final = _packed(TransferKind.PENDING)
_HOLD_CREDIT: Final = _packed(NODE_ACCOUNT) + _INTEGER_LENGTH
_HOLD_PURPOSE: Final = _packed(Purpose.PAYMENT, "")
"""With the id of what it resolves: nothing."""
_HOLD_END: Final = _packed("")
"""It refers to its payment alone."""
