"""What each of the domain's errors is called on the wire."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from services.chassis.errors import Reason, ServiceError, not_found
from services.nip.domain.bip340 import InvalidSecretKeyError
from services.nip.domain.event import MalformedEventError
from services.nip.domain.nip19 import Nip19Error
from services.nip.domain.nip98 import AuthorizationError
from services.nip.keys import KeyNotFoundError
from services.nip.login import LoginReplayedError
from services.nip.store import KeyAlreadyExistsError


@contextmanager
def domain_errors() -> Iterator[None]:
    """Turn the domain's errors into ServiceErrors; anything else passes and becomes INTERNAL at the border."""
    try:
        yield
    except AuthorizationError as error:
        raise ServiceError(Reason.AUTHORIZATION_INVALID, str(error), metadata={"check": error.refusal.name}) from error
    except LoginReplayedError as error:
        raise ServiceError(Reason.LOGIN_REPLAYED, "the event was used for an earlier login: sign a new one") from error
    except KeyNotFoundError as error:
        raise not_found(Reason.KEY_NOT_FOUND, "key") from error
    except KeyAlreadyExistsError as error:
        raise ServiceError(Reason.KEY_ALREADY_EXISTS, "you already hold a key with this public key") from error
    except (InvalidSecretKeyError, Nip19Error) as error:
        raise ServiceError(Reason.KEY_INVALID, "not a valid nsec private key") from error
    except MalformedEventError as error:
        raise ServiceError(Reason.EVENT_INVALID, str(error)) from error
