"""Apps that others wrote use wallets of the running mesh, through real sidecars, over a real relay."""

from __future__ import annotations

import grpc.aio

from nipmesh.nip.v1 import wallet_connect_service_pb2 as pb
from nipmesh.nip.v1.wallet_connect_service_pb2_grpc import WalletConnectServiceStub
from support.mesh import RunningMesh
from support.nostr import User
from support.wallet import Wallet, funded, request_id
from support.wallet_clients import make_pay_and_look_up
from support.wallet_connect import terms


async def connect(channel: grpc.aio.Channel, wallet: Wallet, account_id: str) -> str:
    """A new connection to an account; its URI."""
    stub = WalletConnectServiceStub(channel)
    request = pb.CreateWalletConnectionRequest(
        request_id=request_id(), account_id=account_id, display_name="test", terms=terms(budget_msat=50_000)
    )
    response = await wallet.call(stub.CreateWalletConnection, request)
    return str(response.uri)


async def test_alby_and_nostr_sdk_pay_each_other_through_the_mesh(
    mesh: RunningMesh, channel: grpc.aio.Channel, alice: User, bob: User, operator: User
) -> None:
    alices, bobs, desk = Wallet(channel, alice), Wallet(channel, bob), Wallet(channel, operator)
    payer, payee = await funded(alices, desk, 100_000), await bobs.open_account()
    await make_pay_and_look_up(await connect(channel, bobs, payee), await connect(channel, alices, payer))
    assert (await alices.account(payer)).balance_msat == 96_000
    assert (await bobs.account(payee)).balance_msat == 4_000
    listed = await alices.call(
        WalletConnectServiceStub(channel).ListWalletConnections, pb.ListWalletConnectionsRequest()
    )
    assert [(each.spent_msat, each.pending_msat) for each in listed.connections] == [(7_000, 0)]
