"""What each of the domain's errors is called on the wire."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from services.chassis.errors import FieldViolation, InvalidRequest, Reason, ServiceError, not_found, precondition_failed
from services.invoice.domain.rules import TEXTS, OtherInvoiceError, PreimageMissingError, RefusedError
from services.invoice.holds import ForgedRequestError
from services.invoice.store import HashUsedError, InvoiceNotFoundError
from services.lightning.payment_request import Bolt11Error
from services.nostr.zaps import ZapError


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
    except HashUsedError as error:
        raise ServiceError(Reason.PAYMENT_HASH_USED, "there is an invoice with this payment hash already") from error
    except PreimageMissingError as error:
        violation = FieldViolation(field="preimage", description="only the owner knows it: it must be given")
        raise InvalidRequest(violation) from error
    except ZapError as error:
        text = f"not a zap request to make this invoice for: {error}"
        raise ServiceError(Reason.ZAP_REQUEST_INVALID, text, metadata={"check": error.problem.name}) from error
    except OtherInvoiceError as error:
        violation = FieldViolation(field="payment_id", description="this payment locked another invoice before")
        raise InvalidRequest(violation) from error
    except Bolt11Error as error:
        message = f"not a payment request: {error}"
        raise ServiceError(Reason.PAYMENT_REQUEST_INVALID, message, metadata={"where": error.where}) from error


def _refusal(error: RefusedError) -> ServiceError:
    """Return the error of a state that does not allow what was asked."""
    if error.reason in (Reason.INVOICE_AMOUNT_MISMATCH, Reason.PREIMAGE_MISMATCH):
        return ServiceError(error.reason, TEXTS[error.reason])
    return precondition_failed(error.reason, TEXTS[error.reason], subject=error.subject)
