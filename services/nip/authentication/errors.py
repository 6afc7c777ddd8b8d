"""What each error of a proof is called on the wire."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from services.chassis.errors import Reason, ServiceError
from services.nip.authentication.challenges import ChallengeUsedError, RelayNotTrustedError
from services.nip.authentication.http_auth import AuthorizationReplayedError
from services.nip.domain.nip42 import ChallengeError
from services.nip.errors import domain_errors


@contextmanager
def proof_errors() -> Iterator[None]:
    """Turn the errors of proofs, and all others of the domain, into ServiceErrors."""
    try:
        with domain_errors():
            yield
    except AuthorizationReplayedError as error:
        message = "the event was used before: sign a new one"
        raise ServiceError(Reason.AUTHORIZATION_REPLAYED, message) from error
    except ChallengeError as error:
        raise ServiceError(Reason.CHALLENGE_INVALID, str(error), metadata={"check": error.refusal.name}) from error
    except ChallengeUsedError as error:
        raise ServiceError(Reason.CHALLENGE_USED, "the challenge was answered before: ask for a new one") from error
    except RelayNotTrustedError as error:
        raise ServiceError(Reason.RELAY_NOT_TRUSTED, str(error)) from error
