"""The NIP service put together: what it is made of, in the order in which it comes to life."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Final

from nipmesh.nip.v1 import nip_service_pb2, nip_service_pb2_grpc
from services.chassis.secret import SecretFileError, load_secret
from services.chassis.service import Application, ServiceDefinition
from services.nip.domain.keystore import MASTER_KEY_BYTES, Keystore
from services.nip.domain.token import TokenIssuer, TokenKeyError, TokenTerms
from services.nip.keys import Keys
from services.nip.login import Logins
from services.nip.servicer import ACCESS, AuthServicer, NipServicer
from services.nip.settings import NipSettings
from services.nip.store import DATABASE_NAME, MIGRATIONS, NipStore, WrongMasterKeyError
from services.nip.verification import Verifier
from services.storage.database import Database
from services.storage.pages import PageTokens
from services.storage.sweeper import run_sweeper

_SERVICES: Final = nip_service_pb2.DESCRIPTOR.services_by_name


@asynccontextmanager
async def nip(app: Application[NipSettings]) -> AsyncIterator[None]:
    """Live: secrets first, so that a missing one stops the start before anything is made. Raises SecretFileError."""
    settings = app.settings
    keystore = Keystore(load_secret(settings.keystore_key_file, length=MASTER_KEY_BYTES))
    issuer = _token_issuer(settings)
    path = settings.data_directory / DATABASE_NAME
    async with await Database.open(path, migrations=MIGRATIONS) as database:
        store = NipStore(database)
        await _check_master_key(store, keystore, settings)
        with closing(Keys(store, keystore)) as keys, closing(Verifier()) as verifier:
            auth_servicer = AuthServicer(Logins(store, issuer, settings.gateway_url))
            nip_servicer = NipServicer(keys, verifier, await PageTokens.open(database))
            app.add(nip_service_pb2_grpc.add_AuthServiceServicer_to_server, auth_servicer, _SERVICES["AuthService"])
            app.add(nip_service_pb2_grpc.add_NipServiceServicer_to_server, nip_servicer, _SERVICES["NipService"])
            app.spawn(run_sweeper(database), name="sweeper")
            yield


def _token_issuer(settings: NipSettings) -> TokenIssuer:
    terms = TokenTerms(
        issuer=settings.token_issuer, audience=settings.token_audience, lifetime_seconds=settings.token_lifetime
    )
    try:
        return TokenIssuer(load_secret(settings.token_key_file), terms)
    except TokenKeyError as error:
        raise SecretFileError(f"the token key file {settings.token_key_file} holds {error}") from error


async def _check_master_key(store: NipStore, keystore: Keystore, settings: NipSettings) -> None:
    try:
        await store.check_master_key(keystore.check_value)
    except WrongMasterKeyError as error:
        raise SecretFileError(
            f"the keys in {settings.data_directory / DATABASE_NAME} were sealed with another key than the one in"
            f" {settings.keystore_key_file}: bring back the key file that belongs to this database"
        ) from error


NIP_SERVICE: Final = ServiceDefinition(settings=NipSettings, access=ACCESS, lifespan=nip)
"""What `python -m services.nip` runs."""
