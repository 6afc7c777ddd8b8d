"""SagaService and PaymentOperatorService: what operators see of payments under way, and what they can do about one that is stuck."""

from __future__ import annotations

from typing import Final

import structlog

from nipmesh.operations.v1 import saga_service_pb2
from nipmesh.operations.v1.saga_service_pb2_grpc import SagaServiceServicer
from nipmesh.payment.v1 import payment_operator_service_pb2 as pb
from nipmesh.payment.v1.payment_operator_service_pb2_grpc import PaymentOperatorServiceServicer
from services.chassis.caller import require_operator
from services.chassis.failpoints import failpoint
from services.lightning.node import NodePaid
from services.payment.border import Context, write
from services.payment.changefeed import ChangeFeed
from services.payment.domain.model import Failure
from services.payment.domain.saga import overdue
from services.payment.domain.saga_words import Step
from services.payment.driver import now_ms
from services.payment.store import payments, sagas
from services.payment.store.resolutions import Resolution, resolve_payment
from services.payment.wire import payment_message, timestamp
from services.storage.database import Database
from services.storage.idempotency import RequestKey, run_once
from services.storage.pages import PageTokens
from services.storage.sql import Connection

_State: Final = saga_service_pb2.Saga.State
_log = structlog.stdlib.get_logger()


class SagaServicer(SagaServiceServicer):
    """Reads, renders."""

    def __init__(self, database: Database, tokens: PageTokens) -> None:
        self._database = database
        self._tokens = tokens

    async def ListSagas(
        self, request: saga_service_pb2.ListSagasRequest, context: Context
    ) -> saga_service_pb2.ListSagasResponse:
        """The sagas that are not done."""
        require_operator()
        page = self._tokens.page(request)
        after = str(page.after[0]) if page.after else ""
        views = await self._database.read(lambda connection: sagas.list_sagas(connection, after, page.size + 1))
        shown, moment_ms = views[: page.size], now_ms()
        response = saga_service_pb2.ListSagasResponse(sagas=[saga_message(view, moment_ms) for view in shown])
        if len(views) > page.size:
            response.next_page_token = self._tokens.next(request, (shown[-1].saga.payment_id,))
        return response


def saga_message(view: sagas.SagaView, moment_ms: int) -> saga_service_pb2.Saga:
    """One saga, as it is at `moment_ms`."""
    driven = view.lease_until_ms > moment_ms
    return saga_service_pb2.Saga(
        kind=view.kind,
        saga_id=view.saga.payment_id,
        step=view.saga.step.value,
        state=state_of(view, moment_ms),
        attempt=view.saga.attempt,
        reason=reason_of(view),
        owner=view.owner,
        lease_expire_time=timestamp(view.lease_until_ms) if driven else None,
        next_run_time=None if driven else timestamp(view.next_run_at_ms or moment_ms),
        create_time=timestamp(view.create_time_ms),
        step_time=timestamp(view.saga.step_time_ms),
    )


def state_of(view: sagas.SagaView, moment_ms: int) -> saga_service_pb2.Saga.State.ValueType:
    """How it goes: stuck is what an operator must know first."""
    if overdue(view.saga, moment_ms, view.create_time_ms):
        return _State.STATE_STUCK
    if view.saga.step is Step.RELEASE_INVOICE:
        return _State.STATE_COMPENSATING
    return _State.STATE_WAITING if view.state == sagas.WAITING else _State.STATE_IN_PROGRESS


def reason_of(view: sagas.SagaView) -> str:
    """Why it is where it is: what last stood in its way, else why it is undone."""
    undone = view.saga.failure is not Failure.NONE
    return view.saga.error or (view.saga.failure.name if undone else "")


class PaymentOperatorServicer(PaymentOperatorServiceServicer):
    """Checks the role, asks the store, and writes who did it to the log."""

    def __init__(self, database: Database, feed: ChangeFeed) -> None:
        self._database = database
        self._feed = feed

    async def ResolvePayment(self, request: pb.ResolvePaymentRequest, context: Context) -> pb.ResolvePaymentResponse:
        """End a payment that is in flight outside, and stuck."""
        operator = require_operator()
        key = RequestKey.of(request)
        paid = NodePaid(request.paid.preimage, request.paid.fee_msat) if request.HasField("paid") else None
        resolution = Resolution(
            payment_id=request.payment_id.lower(), operator=operator, paid=paid, reason=request.reason, now_ms=now_ms()
        )

        def effect(connection: Connection) -> pb.ResolvePaymentResponse:
            payment = resolve_payment(connection, resolution)
            return pb.ResolvePaymentResponse(payment=payment_message(payment, with_preimage=False))

        failpoint("resolve")
        response, replayed = await write(
            self._database,
            lambda connection: run_once(connection, key, pb.ResolvePaymentResponse, lambda: effect(connection)),
            request.payment_id,
        )
        failpoint("resolve.done")
        response.replayed = replayed
        await self._tell(resolution, replayed=replayed)
        return response

    async def _tell(self, resolution: Resolution, *, replayed: bool) -> None:
        """Log who decided what, and ring for those who wait here."""
        _log.info(
            "payment.resolution.replayed" if replayed else "payment.resolution",
            operator=resolution.operator,
            payment_id=resolution.payment_id,
            paid=resolution.paid is not None,
            reason=resolution.reason,
        )
        payment = await self._database.read(lambda connection: payments.find_payment(connection, resolution.payment_id))
        assert payment is not None, "payments are never deleted"
        self._feed.publish(payment)
