"""What each of the domain's errors is called on the wire."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from services.chassis.errors import FieldViolation, InvalidRequest, Reason, ServiceError, not_found, precondition_failed
from services.invoice.domain.rules import TEXTS, OtherInvoiceError, RefusedError
from services.invoice.store import ForgedRequestError, InvoiceNotFoundError
from services.lightning.payment_request import Bolt11Error


@contextmanager
def domain_errors() -> Iterator[None]:
    """Turn the domain's errors into ServiceErrors; anything else passes and becomes INTERNAL at the border."""
    try:
        yield
    except InvoiceNotFoundError as error:
        raise not_found(Reason.INVOICE_NOT_FOUND, "invoice") from error
    except ForgedRequestError as error:
        message = "this is not the payment request that was issued for its payment hash"
        raise ServiceError(Reason.PAYMENT_REQUEST_INVALID, message) from error
    except RefusedError as error:
        raise _refusal(error) from error
    except OtherInvoiceError as error:
        violation = FieldViolation(field="payment_id", description="this payment locked another invoice before")
        raise InvalidRequest(violation) from error
    except Bolt11Error as error:
        message = f"not a payment request: {error}"
        raise ServiceError(Reason.PAYMENT_REQUEST_INVALID, message, metadata={"where": error.where}) from error


def _refusal(error: RefusedError) -> ServiceError:
    """Return the error of a state that does not allow what was asked."""
    if error.reason is Reason.INVOICE_AMOUNT_MISMATCH:
        return ServiceError(error.reason, TEXTS[error.reason])
    return precondition_failed(error.reason, TEXTS[error.reason], subject=error.subject)
