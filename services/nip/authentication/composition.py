"""AuthService put together."""

from __future__ import annotations

from collections.abc import Callable

from nipmesh.nip.v1 import nip_service_pb2, nip_service_pb2_grpc
from services.chassis.errors import StartError
from services.chassis.service import Application
from services.nip.authentication.challenges import Challenges, TrustedRelays
from services.nip.authentication.http_auth import HttpAuths
from services.nip.authentication.proofs import UsedProofs
from services.nip.authentication.servicer import AuthServicer
from services.nip.domain.nip42 import Seal
from services.nip.domain.token import TokenIssuer
from services.nip.keyring import Keyring
from services.nip.keys import Keys
from services.nip.login import Logins
from services.nip.settings import NipSettings
from services.nostr.relay_url import RelayUrlError
from services.storage.database import Database


def add_authentication(
    app: Application[NipSettings], database: Database, keyring: Keyring, keys: Keys, issuer: TokenIssuer
) -> None:
    """Serve AuthService. Raises StartError for a relay's URL in the settings that is none."""
    settings, proofs = app.settings, UsedProofs(database)
    try:
        relays = TrustedRelays.of(settings.gateway_url, settings.trusted_relay_urls)
    except RelayUrlError as error:
        raise StartError(f"NIPMESH_TRUSTED_RELAYS and NIPMESH_GATEWAY_URL: {error}") from error
    servicer = AuthServicer(
        Logins(proofs, issuer, settings.gateway_url),
        Challenges(proofs, issuer, relays, seal_of(keyring), told=settings.challenge_events),
        HttpAuths(keys, proofs),
    )
    descriptor = nip_service_pb2.DESCRIPTOR.services_by_name["AuthService"]
    app.add(nip_service_pb2_grpc.add_AuthServiceServicer_to_server, servicer, descriptor)


def seal_of(keyring: Keyring) -> Callable[[], Seal]:
    """The keyed hash of challenges: all replicas of one key file have it, and it outlives a rotation."""
    return lambda: lambda body, url: keyring.current.fingerprint(b"nipmesh/nip/challenge/v1", body, url)
