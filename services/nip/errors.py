"""What each of the domain's errors is called on the wire."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from services.chassis.errors import (
    FieldViolation,
    InvalidRequest,
    Reason,
    ServiceError,
    not_found,
    precondition_failed,
)
from services.nip.domain.encryption import (
    DecryptionError,
    InvalidPeerError,
    PlaintextError,
    UnsupportedVersionError,
)
from services.nip.domain.life import Refusal
from services.nip.domain.nip19 import Nip19Error
from services.nip.domain.nip49 import NcryptsecError, PasswordWrongError, TooCostlyError
from services.nip.domain.nip98 import AuthorizationError
from services.nip.domain.relays import RelayError
from services.nip.key_life import AttemptsExceededError
from services.nip.keys import KeyNotFoundError, KeyRefusedError
from services.nip.login import LoginReplayedError
from services.nip.store import KeyAlreadyExistsError
from services.nostr.bip340 import InvalidSecretKeyError
from services.nostr.event import MalformedEventError


@contextmanager
def domain_errors() -> Iterator[None]:
    """Turn the domain's errors into ServiceErrors; anything else passes and becomes INTERNAL at the border."""
    try:
        yield
    except AuthorizationError as error:
        raise ServiceError(Reason.AUTHORIZATION_INVALID, str(error), metadata={"check": error.refusal.name}) from error
    except LoginReplayedError as error:
        raise ServiceError(Reason.LOGIN_REPLAYED, "the event was used before: sign a new one") from error
    except KeyNotFoundError as error:
        raise not_found(Reason.KEY_NOT_FOUND, "key") from error
    except KeyAlreadyExistsError as error:
        raise ServiceError(Reason.KEY_ALREADY_EXISTS, "you already hold a key with this public key") from error
    except (InvalidSecretKeyError, Nip19Error, NcryptsecError) as error:
        raise ServiceError(Reason.KEY_INVALID, "not a valid nsec or ncryptsec private key") from error
    except MalformedEventError as error:
        raise ServiceError(Reason.EVENT_INVALID, str(error)) from error
    except KeyRefusedError as error:
        raise _refused(error) from error


@contextmanager
def password_errors() -> Iterator[None]:
    """The same for the errors of passwords."""
    try:
        yield
    except PasswordWrongError as error:
        raise ServiceError(Reason.PASSWORD_WRONG, "the password does not open the key") from error
    except AttemptsExceededError as error:
        wait_ms = -(-error.wait_us // 1_000)
        raise ServiceError(
            Reason.PASSWORD_ATTEMPTS_EXCEEDED,
            "too many wrong passwords for this key",
            retry_delay_ms=wait_ms,
            from_dependency=True,  # another replica counts the same attempts: no sidecar repeats the call
        ) from error
    except TooCostlyError as error:
        raise ServiceError(Reason.NCRYPTSEC_TOO_COSTLY, str(error)) from error


@contextmanager
def text_errors() -> Iterator[None]:
    """The same for the errors of texts: encrypted ones, NIP-19 and relays."""
    try:
        yield
    except UnsupportedVersionError as error:
        raise ServiceError(Reason.PAYLOAD_VERSION_UNSUPPORTED, str(error)) from error
    except DecryptionError as error:
        raise ServiceError(Reason.DECRYPTION_FAILED, str(error)) from error
    except InvalidPeerError as error:
        raise ServiceError(Reason.PEER_INVALID, str(error)) from error
    except PlaintextError as error:
        raise InvalidRequest(FieldViolation(field="plaintext", description=str(error))) from error
    except RelayError as error:
        raise ServiceError(Reason.RELAY_INVALID, str(error)) from error


REFUSALS: Final = {
    Refusal.LOCKED: (Reason.KEY_LOCKED, "the key is locked with a password"),
    Refusal.NOT_LOCKED: (Reason.KEY_NOT_LOCKED, "the key has no password"),
    Refusal.NOT_ACTIVE: (Reason.KEY_NOT_ACTIVE, "the key is disabled"),
    Refusal.DELETED: (Reason.KEY_NOT_FOUND, "no such key"),
}
"""How each refusal is told."""


def _refused(error: KeyRefusedError) -> ServiceError:
    """A refusal with the key that it is about; a deleted key is "no such key" before it comes to this."""
    reason, message = REFUSALS[error.refusal]
    return precondition_failed(reason, message, subject=error.key_id)
