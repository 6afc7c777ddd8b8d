"""Between the messages of nipmesh.nip.v1.WalletConnectService and the domain; nothing is decided here."""

from __future__ import annotations

from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from nipmesh.nip.v1 import wallet_connect_service_pb2 as pb
from services.nip.domain.nip47 import budget as rules
from services.nip.domain.nip47.budget import Budget, Renewal
from services.nip.domain.nip47.connection import Terms, WalletConnection
from services.nip.domain.nip47.words import Method, Topic

MS_PER_SECOND: Final = 1_000
NANOSECONDS_PER_MS: Final = 1_000_000


def terms_of(message: pb.WalletTerms) -> Terms:
    """Return the terms that a message names."""
    budget = Budget(
        limit_msat=message.budget_msat if message.HasField("budget_msat") else None,
        renewal=Renewal(message.renewal or Renewal.NEVER),
        payment_msat_max=message.payment_msat_max if message.HasField("payment_msat_max") else None,
    )
    expire_time_ms = message.expire_time.ToMilliseconds() if message.HasField("expire_time") else None
    return Terms(
        methods=tuple(Method(word) for word in message.methods),
        topics=tuple(Topic(word) for word in message.notifications),
        budget=budget,
        expire_time_ms=expire_time_ms,
    )


def connection_message(of: WalletConnection, now_ms: int) -> pb.WalletConnection:
    """Return the message of a connection, its usage as it is given."""
    renewal = of.terms.budget.renewal
    return pb.WalletConnection(
        connection_id=of.connection_id,
        account_id=of.account_id,
        display_name=of.display_name,
        state=_state(of, now_ms),
        service_pubkey=of.service_pubkey,
        client_pubkey=of.client_pubkey,
        relays=of.relays,
        terms=_terms_message(of.terms),
        spent_msat=of.usage.spent_msat,
        pending_msat=of.usage.pending_msat,
        period_start_time=_timestamp(of.usage.period_start_ms or None),
        renew_time=_timestamp(rules.renew_time_ms(renewal, now_ms)),
        create_time=_timestamp(of.create_time_ms),
        update_time=_timestamp(of.update_time_ms),
        use_time=_timestamp(of.use_time_ms),
    )


def _terms_message(terms: Terms) -> pb.WalletTerms:
    return pb.WalletTerms(
        methods=terms.methods,
        notifications=terms.topics,
        budget_msat=terms.budget.limit_msat,
        renewal=pb.WalletTerms.Renewal.ValueType(terms.budget.renewal),
        payment_msat_max=terms.budget.payment_msat_max,
        expire_time=_timestamp(terms.expire_time_ms),
    )


def _state(of: WalletConnection, now_ms: int) -> pb.WalletConnection.State.ValueType:
    if of.revoke_time_ms is not None:
        return pb.WalletConnection.STATE_REVOKED
    return pb.WalletConnection.STATE_ACTIVE if of.is_live(now_ms) else pb.WalletConnection.STATE_EXPIRED


def _timestamp(time_ms: int | None) -> Timestamp | None:
    if time_ms is None:
        return None
    seconds, rest_ms = divmod(time_ms, MS_PER_SECOND)
    return Timestamp(seconds=seconds, nanos=rest_ms * NANOSECONDS_PER_MS)
