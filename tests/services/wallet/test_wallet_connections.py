"""Connections: made once, shown with what is used, changed, ended; budgets that parallel payments cannot outrun; on both engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from nipmesh.nip.v1 import wallet_connect_service_pb2 as pb
from services.chassis.errors import reason_of
from services.chassis.testing import as_service, as_user
from support.folders import short_folder
from support.nostr_relay import NostrRelay
from support.outside import Notary
from support.payment_mesh import refused
from support.relay import relay_before
from support.wallet_connect import ALICE, BOB, OPERATOR, App, WalletMesh, app_of, request_id, terms, wallet_mesh

R = pb.WalletTerms.Renewal
LATE_S = 0.7
"""Longer than an app takes to connect and ask; shorter than a new URI waits."""


@pytest.fixture
async def own_mesh(relay: NostrRelay, database_settings: dict[str, Any]) -> AsyncIterator[WalletMesh]:
    """A mesh of the test's own, on either engine."""
    with short_folder() as folder:
        settings = {"database_url": database_settings["database_url"]} if "database_url" in database_settings else {}
        async with wallet_mesh(folder, relay.url, **settings) as running:
            yield running


async def test_the_life_of_a_connection(own_mesh: WalletMesh) -> None:
    mesh = own_mesh
    await _made_once(mesh)
    await _theirs_alone(mesh)
    await _changed_and_ended(mesh)
    await _never_outrun(mesh)


async def _made_once(mesh: WalletMesh) -> None:
    """A repeated call gets the same URI until the app has used it; then none, and never another connection."""
    account_id, identifier = await mesh.open(ALICE), request_id()
    wallet_terms = terms(("get_info",), budget_msat=1_000, renewal=R.RENEWAL_MONTHLY)
    first = await mesh.connect(ALICE, account_id, wallet_terms, request_id=identifier, display_name="games")
    again = await mesh.connect(ALICE, account_id, wallet_terms, request_id=identifier.upper(), display_name="games")
    assert (first.replayed, again.replayed, again.uri) == (False, True, first.uri)
    assert first.uri.startswith(
        f"nostr+walletconnect://{first.connection.service_pubkey}?relay=ws%3A%2F%2F127.0.0.1%3A"
    )
    connection = first.connection
    assert (connection.display_name, connection.terms, list(connection.relays)) == ("games", wallet_terms, [mesh.relay])
    assert connection.state == pb.WalletConnection.STATE_ACTIVE
    assert connection.period_start_time.seconds < connection.create_time.seconds < connection.renew_time.seconds
    reused = mesh.connect(ALICE, account_id, terms(("get_balance",)), request_id=identifier)
    assert (await refused(reused))[1] == "REQUEST_ID_REUSED"
    async with app_of(first.uri) as app:
        assert (await app.ask("get_info"))["error"] is None
    used = await mesh.connect(ALICE, account_id, wallet_terms, request_id=identifier, display_name="games")
    assert (used.replayed, used.uri, used.connection.connection_id) == (True, "", connection.connection_id)
    assert (await mesh.connection(ALICE, connection.connection_id)).HasField("use_time")


async def _theirs_alone(mesh: WalletMesh) -> None:
    """Nobody else sees or changes a connection, whatever they are; nor connects to an account that is not theirs."""
    alices = await mesh.open(ALICE)
    made = (await mesh.connect(ALICE, alices)).connection
    calls = {
        "GetWalletConnection": pb.GetWalletConnectionRequest(connection_id=made.connection_id),
        "UpdateWalletConnection": pb.UpdateWalletConnectionRequest(
            request_id=request_id(), connection_id=made.connection_id, terms=terms()
        ),
        "RevokeWalletConnection": pb.RevokeWalletConnectionRequest(
            request_id=request_id(), connection_id=made.connection_id
        ),
    }
    strangers = (as_user(BOB), as_user(OPERATOR, role="operator"))
    for name, request in calls.items():
        for metadata in strangers:
            error = await refused(getattr(mesh.wallets, name)(request, metadata=metadata))
            assert error == (grpc.StatusCode.NOT_FOUND, "WALLET_CONNECTION_NOT_FOUND")
        service = getattr(mesh.wallets, name)(request, metadata=as_service("payment"))
        assert (await refused(service))[1] == "CALLER_NOT_ALLOWED"
    assert (await refused(mesh.connect(BOB, alices)))[1] == "ACCOUNT_NOT_FOUND"
    elsewhere = mesh.connect(ALICE, alices, relays=["wss://relay.example.com"])
    assert await refused(elsewhere) == (grpc.StatusCode.INVALID_ARGUMENT, "WALLET_RELAY_NOT_ALLOWED")
    for wrong in (pb.WalletTerms(), terms(("pay_keysend",)), terms(topics=("payment_lost",)), terms(budget_msat=-1)):
        assert (await refused(mesh.connect(ALICE, alices, wrong)))[1] == "REQUEST_INVALID"
    request = pb.ListWalletConnectionsRequest(page_size=1)
    page = await mesh.wallets.ListWalletConnections(request, metadata=as_user(ALICE))
    assert [each.connection_id for each in page.connections] == [made.connection_id]
    assert not (await mesh.wallets.ListWalletConnections(request, metadata=as_user(BOB))).connections
    request.page_token = page.next_page_token
    older = await mesh.wallets.ListWalletConnections(request, metadata=as_user(ALICE))
    assert (older.connections[0].display_name, older.next_page_token) == ("games", "")


async def _changed_and_ended(mesh: WalletMesh) -> None:
    """New terms count at once, what was spent stays spent; what is revoked stays so."""
    alices, bobs = await mesh.open(ALICE, 100_000), await mesh.open(BOB)
    made = await mesh.connect(ALICE, alices, terms(budget_msat=15_000, payment_msat_max=12_000))
    connection_id = made.connection.connection_id
    async with app_of(made.uri) as app:
        assert await _pay(mesh, app, bobs, 12_001) == "QUOTA_EXCEEDED"
        assert await _pay(mesh, app, bobs, 12_000) is None
        assert await _pay(mesh, app, bobs, 3_001) == "QUOTA_EXCEEDED"
        assert await _pay(mesh, app, bobs, 3_000) is None
        found = await mesh.connection(ALICE, connection_id)
        assert (found.spent_msat, found.pending_msat, found.HasField("renew_time")) == (15_000, 0, False)
        change = pb.UpdateWalletConnectionRequest(
            request_id=request_id(),
            connection_id=connection_id,
            terms=terms(("pay_invoice",), budget_msat=20_000, renewal=R.RENEWAL_DAILY),
        )
        for replayed in (False, True):
            changed = await mesh.wallets.UpdateWalletConnection(change, metadata=as_user(ALICE))
            assert (changed.replayed, changed.connection.spent_msat) == (replayed, 15_000)
        assert await _pay(mesh, app, bobs, 5_001) == "QUOTA_EXCEEDED"
        assert await _pay(mesh, app, bobs, 5_000) is None
        assert (await app.ask("get_balance"))["error"]["code"] == "RESTRICTED"
        revocation = pb.RevokeWalletConnectionRequest(request_id=request_id(), connection_id=connection_id)
        for replayed in (False, True):
            ended = await mesh.wallets.RevokeWalletConnection(revocation, metadata=as_user(ALICE))
            assert (ended.replayed, ended.connection.state) == (replayed, pb.WalletConnection.STATE_REVOKED)
        assert await _pay(mesh, app, bobs, 1) == "UNAUTHORIZED"
    change.request_id = request_id()
    late = mesh.wallets.UpdateWalletConnection(change, metadata=as_user(ALICE))
    assert await refused(late) == (grpc.StatusCode.FAILED_PRECONDITION, "WALLET_CONNECTION_REVOKED")


async def _never_outrun(mesh: WalletMesh) -> None:
    """Payments at the same time, by an app that asks for more than it may: the budget holds, and is right afterwards."""
    alices, bobs = await mesh.open(ALICE, 1_000_000), await mesh.open(BOB)
    made = await mesh.connect(ALICE, alices, terms(budget_msat=45_000))
    async with app_of(made.uri) as app:
        codes = await asyncio.gather(*(_pay(mesh, app, bobs, 10_000) for _ in range(8)))
        succeeded = codes.count(None)
        assert set(codes) == {None, "QUOTA_EXCEEDED"}
        assert 2 <= succeeded <= 4
        found = await mesh.connection(ALICE, made.connection.connection_id)
        assert (found.spent_msat, found.pending_msat) == (10_000 * succeeded, 0)
    assert await mesh.balance(alices) == 1_000_000 - 10_000 * succeeded


async def _pay(mesh: WalletMesh, app: App, payee: str, amount_msat: int) -> str | None:
    """Pay a new invoice of Bob; the error's code."""
    invoice = await mesh.invoice(BOB, payee, amount_msat)
    error = (await app.ask("pay_invoice", {"invoice": invoice.payment_request}))["error"]
    return None if error is None else str(error["code"])


async def test_an_app_is_heard_from_its_first_request_on(relay: NostrRelay) -> None:
    """Relays do not store requests: whoever has the URI is listened for, also when the relay is slow to hear what it is asked for."""
    with short_folder() as folder:
        async with relay_before(relay.url, late_s=LATE_S) as late, wallet_mesh(folder, late) as mesh:
            account_id = await mesh.open(ALICE)
            for _ in range(2):
                made = await mesh.connect(ALICE, account_id)
                async with app_of(made.uri, relay.url) as app:
                    assert (await app.ask("get_info"))["error"] is None


async def test_relays_with_certificates_of_an_own_authority(relay: NostrRelay) -> None:
    with short_folder() as folder:
        notary = Notary(folder)
        pair = notary.issue("relay", "localhost")
        async with (
            relay_before(relay.url, tls=(pair.certificate, pair.private_key), host="localhost") as secure,
            wallet_mesh(folder, secure, relay_ca_file=notary.file) as mesh,
        ):
            made = await mesh.connect(ALICE, await mesh.open(ALICE))
            assert list(made.connection.relays) == [secure]
            async with app_of(made.uri, relay.url) as app:
                assert (await app.ask("get_info"))["error"] is None


async def test_without_relays_there_are_no_wallets() -> None:
    with short_folder() as folder:
        async with wallet_mesh(folder, "") as mesh:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await mesh.connect(ALICE, await mesh.open(ALICE))
            assert reason_of(caught.value) == "WALLET_RELAYS_NOT_CONFIGURED"
