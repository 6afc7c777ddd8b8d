"""What is done with the user's key for an app, and what an app is told when it cannot be done: short texts, nothing internal."""

from __future__ import annotations

from typing import Final

from services.nip.domain.ciphers import Cipher
from services.nip.domain.encryption import DecryptionError, InvalidPeerError, PlaintextError
from services.nip.domain.life import Refusal
from services.nip.domain.remote_signer.connection import DENIED, UNKNOWN_METHOD, Connection, Decision, Step
from services.nip.domain.remote_signer.message import NULL, Answer, ParameterError, Request, peer_of, template_of
from services.nip.domain.remote_signer.permission import Method
from services.nip.keys import KeyNotFoundError, KeyRefusedError, Keys, Signing
from services.nostr.event import MalformedEventError
from services.nostr.event_json import json_of_event

ACK: Final = "ack"
PONG: Final = "pong"
METHOD_NAME: Final = "nip46:"
"""What the audit of keys calls a use by an app: this, and NIP-46's word for it."""

_CIPHERS: Final = {
    Method.NIP04_ENCRYPT: Cipher.NIP04,
    Method.NIP04_DECRYPT: Cipher.NIP04,
    Method.NIP44_ENCRYPT: Cipher.NIP44,
    Method.NIP44_DECRYPT: Cipher.NIP44,
}
_ENCRYPTS: Final = frozenset({Method.NIP04_ENCRYPT, Method.NIP44_ENCRYPT})
_REFUSALS: Final = {
    Refusal.LOCKED: "the key is locked: its owner needs to unlock it",
    Refusal.NOT_ACTIVE: "the key is switched off",
}


class CannotDoError(Exception):
    """The app is told why."""


async def perform(
    keys: Keys, connection: Connection, decision: Decision, client_pubkey: str, request: Request, moment_s: int
) -> Answer | None:
    """Do what was decided; None: the app gets no answer, or not now. Raises CannotDoError and ServiceError.

    `moment_s` is when the request was made: an event that has no time of its own gets that.
    """
    match decision.step:
        case Step.IGNORE | Step.ASK:
            return None
        case Step.CONNECT | Step.ACKNOWLEDGE | Step.LOGOUT:
            return Answer(result=ACK)
        case Step.PUBLIC_KEY:
            return Answer(result=connection.user_pubkey)
        case Step.PONG:
            return Answer(result=PONG)
        case Step.RELAYS:
            return Answer(result=NULL)
        case Step.REFUSE:
            return Answer(error=DENIED)
        case Step.UNKNOWN:
            return Answer(error=UNKNOWN_METHOD)
        case Step.PERFORM:
            return Answer(result=await _used(keys, connection, client_pubkey, request, moment_s))


async def _used(keys: Keys, connection: Connection, client_pubkey: str, request: Request, moment_s: int) -> str:
    """Use the key; the result is not empty. Raises CannotDoError."""
    try:
        result = await _result(keys, connection, client_pubkey, request, moment_s)
    except (ParameterError, MalformedEventError, PlaintextError) as error:
        raise CannotDoError(str(error)) from error
    except InvalidPeerError as error:
        raise CannotDoError("the first parameter is not a public key") from error
    except DecryptionError as error:
        raise CannotDoError("the text cannot be decrypted") from error
    except KeyNotFoundError as error:
        raise CannotDoError("the key is gone") from error
    except KeyRefusedError as error:
        raise CannotDoError(_REFUSALS.get(error.refusal, "the key cannot be used")) from error
    if not result:
        raise CannotDoError("the text is empty")  # an empty result lets nostr-tools wait for ever
    return result


async def _result(keys: Keys, connection: Connection, client_pubkey: str, request: Request, moment_s: int) -> str:
    method = request.key_method
    assert method is not None, "looked at where it was decided"
    name = METHOD_NAME + method.value
    if method is Method.SIGN_EVENT:
        signing = Signing(
            owner=connection.owner,
            request_id="",
            key_id=connection.key_id,
            template=template_of(request, created_at=moment_s),
            actor=client_pubkey,
            method=name,
        )
        event, _ = await keys.sign(signing)
        return json_of_event(event)
    transform = keys.encrypt if method in _ENCRYPTS else keys.decrypt
    return await transform(
        connection.owner,
        connection.key_id,
        peer_of(request),
        request.param(1),
        _CIPHERS[method],
        actor=client_pubkey,
        method=name,
    )
