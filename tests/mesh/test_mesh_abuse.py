"""What an attacker with an account of his own tries, against the running mesh."""

from __future__ import annotations

import secrets
import time

import bolt11
import grpc
import grpc.aio
import pytest

from nipmesh.payment.v1 import payment_pb2, payment_service_pb2
from support.nostr import User
from support.wallet import Wallet, funded, request_id

pytestmark = pytest.mark.mesh


def forged(payment_hash: str, description: str) -> str:
    """A request over somebody else's hash, for 1 satoshi, signed by a node of the attacker's."""
    tags = bolt11.Tags(
        [
            bolt11.Tag(bolt11.TagChar.payment_hash, payment_hash),
            bolt11.Tag(bolt11.TagChar.payment_secret, secrets.token_hex(32)),
            bolt11.Tag(bolt11.TagChar.description, description),
        ]
    )
    invoice = bolt11.Bolt11(currency="bcrt", date=int(time.time()), tags=tags, amount_msat=bolt11.MilliSatoshi(1_000))
    return str(bolt11.encode(invoice, private_key=secrets.token_hex(32)))


@pytest.mark.parametrize("description", ["mine now", "simulated:hang"])
async def test_a_forged_request_neither_pays_nor_blocks_the_real_one(
    channel: grpc.aio.Channel, alice: User, bob: User, operator: User, description: str
) -> None:
    payer, payee, attacker = Wallet(channel, alice), Wallet(channel, bob), Wallet(channel, alice)
    desk = Wallet(channel, operator)
    source, purse = await funded(payer, desk, 60_000), await funded(attacker, desk, 60_000)
    real = await payee.invoice(await payee.open_account(), 50_000)
    attempt = (await attacker.pay(purse, forged(real.payment_hash, description))).payment
    assert attempt.state == payment_pb2.Payment.STATE_FAILED
    assert attempt.failure_reason == payment_pb2.Payment.FAILURE_REASON_INCORRECT_PAYMENT_DETAILS
    assert (await attacker.account(purse)).available_msat == 60_000
    payment = (await payer.pay(source, real.payment_request)).payment
    assert payment.state == payment_pb2.Payment.STATE_SUCCEEDED


async def test_a_request_id_is_one_in_either_case(channel: grpc.aio.Channel, alice: User, operator: User) -> None:
    wallet, desk = Wallet(channel, alice), Wallet(channel, operator)
    account_id = await wallet.open_account()
    identifier = request_id()
    for spelled in (identifier, identifier.upper(), identifier):
        deposit = payment_service_pb2.DepositRequest(request_id=spelled, account_id=account_id, amount_msat=1_000)
        await desk.call(desk.ledger.Deposit, deposit)
    assert (await wallet.account(account_id)).balance_msat == 1_000
