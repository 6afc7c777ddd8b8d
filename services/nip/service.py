"""The NIP service put together: what it is made of, in the order in which it comes to life."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Final

from nipmesh.nip.v1 import nip_service_pb2, nip_service_pb2_grpc
from services.chassis.secret import SecretBytes, SecretFileError, load_secret
from services.chassis.service import Application, ServiceDefinition
from services.events.runtime import open_events
from services.events.servicer import EVENT_ACCESS, add_event_service
from services.nip import servicer
from services.nip.authentication import servicer as authentication_servicer
from services.nip.authentication.composition import add_authentication
from services.nip.domain.keystore import SealBrokenError
from services.nip.domain.token import TokenIssuer, TokenKeyError, TokenTerms
from services.nip.following import CONSUMER, TYPES, Follower
from services.nip.key_life import KeyLife
from services.nip.key_sweeper import run_key_sweeper
from services.nip.keyring import Keyring, WrongMasterKeyError, load_master_key
from services.nip.keys import Keys
from services.nip.life_store import LifeStore
from services.nip.passwords import PasswordWork
from services.nip.remote_signer import servicer as remote_signer_servicer
from services.nip.remote_signer.composition import serving_remote_signer
from services.nip.servicer import NipServicer
from services.nip.settings import NipSettings
from services.nip.store import DATABASE_NAME, MIGRATIONS, NipStore
from services.nip.wallet import servicer as wallet_servicer
from services.nip.wallet.notifying import Listener
from services.nip.wallet.serving import now_ms, serving_wallets
from services.nip.zaps import servicer as zap_servicer
from services.nip.zaps.composition import open_zaps
from services.nostr.verification import Verifier
from services.storage.database import Database
from services.storage.pages import PageTokens
from services.storage.places import place_of, shown
from services.storage.sweeper import run_sweeper

_SERVICES: Final = nip_service_pb2.DESCRIPTOR.services_by_name


@asynccontextmanager
async def nip(app: Application[NipSettings]) -> AsyncIterator[None]:
    """Live: secrets first, so that a missing one stops the start before anything is made. Raises SecretFileError."""
    settings = app.settings
    master_key = load_master_key(settings.keystore_key_file)
    issuer = _token_issuer(settings)
    place = place_of(settings, DATABASE_NAME)
    async with await Database.open(place, migrations=MIGRATIONS) as database, open_events(app, database) as events:
        store = NipStore(database)
        keyring = await _keyring(store, master_key, settings)
        life_store, passwords = LifeStore(database), PasswordWork()
        with (
            closing(passwords),
            closing(Keys(store, life_store, keyring, passwords)) as keys,
            closing(Verifier()) as verifier,
        ):
            life = KeyLife(keys, life_store, keyring, passwords)
            nip_servicer = NipServicer(keys, life, verifier, await PageTokens.open(database))
            add_authentication(app, database, keyring, keys, issuer)
            app.add(nip_service_pb2_grpc.add_NipServiceServicer_to_server, nip_servicer, _SERVICES["NipService"])
            add_event_service(app, events, await PageTokens.open(database))
            app.spawn(run_sweeper(database), name="sweeper")
            app.spawn(run_key_sweeper(keys, life_store), name="key sweeper")
            async with (
                serving_remote_signer(app, database, keyring, keys) as signer,
                serving_wallets(app, database, keys) as wallets,
                open_zaps(app, database, keyring, keys) as receipts,
            ):
                follower = Follower(receipts, Listener(now_ms))
                events.consume(name=CONSUMER, types=TYPES, handle=follower.handle)
                await asyncio.gather(signer.listen_everywhere(), wallets.listen_everywhere())
                yield


def _token_issuer(settings: NipSettings) -> TokenIssuer:
    terms = TokenTerms(
        issuer=settings.token_issuer, audience=settings.token_audience, lifetime_seconds=settings.token_lifetime
    )
    try:
        return TokenIssuer(load_secret(settings.token_key_file), terms)
    except TokenKeyError as error:
        raise SecretFileError(f"the token key file {settings.token_key_file} holds {error}") from error


async def _keyring(store: NipStore, master_key: SecretBytes, settings: NipSettings) -> Keyring:
    try:
        return await Keyring.open(store, settings.keystore_key_file, master_key)
    except (WrongMasterKeyError, SealBrokenError) as error:
        raise SecretFileError(
            f"the keys in {shown(place_of(settings, DATABASE_NAME))} were sealed with another key than the one in"
            f" {settings.keystore_key_file}: bring back the key file that belongs to this database"
        ) from error


ACCESS: Final = {
    **servicer.ACCESS,
    **authentication_servicer.ACCESS,
    **remote_signer_servicer.ACCESS,
    **wallet_servicer.ACCESS,
    **zap_servicer.ACCESS,
    **EVENT_ACCESS,
}
NIP_SERVICE: Final = ServiceDefinition(settings=NipSettings, access=ACCESS, lifespan=nip)
"""What `python -m services.nip` runs."""
