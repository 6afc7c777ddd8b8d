"""Who may do what: logins, ownership, roles, and claims that only the gateway can make."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import jwt
import pytest

from generator.outputs.local.paths import StatePaths
from nipmesh.invoice.v1 import invoice_service_pb2
from nipmesh.nip.v1 import nip_pb2, nip_service_pb2
from nipmesh.nip.v1.nip_service_pb2_grpc import AuthServiceStub
from nipmesh.payment.v1 import payment_service_pb2
from services.chassis import reason_of
from support.mesh import RunningMesh
from support.nostr import LOGIN_PATH, User, bearer, encode_authorization
from support.wallet import Wallet, funded, request_id

pytestmark = pytest.mark.mesh

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED


async def refused(awaitable: Any) -> grpc.StatusCode:
    """The code that a call fails with."""
    with pytest.raises(grpc.RpcError) as error:
        await awaitable
    return error.value.code()


def _event(user: User, url: str, **changes: Any) -> str:
    tags = changes.pop("tags", [["u", url + LOGIN_PATH], ["method", "POST"]])
    return encode_authorization(user.event(changes.pop("kind", 27235), tags, **changes))


WRONG_LOGINS: dict[str, Callable[[User, str], str]] = {
    "not base64": lambda _user, _url: "Nostr ***",
    "other scheme": lambda _user, _url: "Bearer abc",
    "other method": lambda user, url: _event(user, url, tags=[["u", url + LOGIN_PATH], ["method", "GET"]]),
    "other url": lambda user, url: _event(user, url, tags=[["u", "http://elsewhere" + LOGIN_PATH], ["method", "POST"]]),
    "other kind": lambda user, url: _event(user, url, kind=1),
    "too old": lambda user, url: _event(user, url, created_at=int(time.time()) - 120),
    "from the future": lambda user, url: _event(user, url, created_at=int(time.time()) + 120),
    "unsigned": lambda user, url: user.authorization(url, sig="00" * 64),
    "another's signature": lambda user, url: user.authorization(url, pubkey=User().pubkey),
    "no tags": lambda user, url: _event(user, url, tags=[]),
}


@pytest.mark.parametrize("wrong", WRONG_LOGINS)
async def test_a_wrong_login_is_unauthenticated(mesh: RunningMesh, channel: grpc.aio.Channel, wrong: str) -> None:
    authorization = WRONG_LOGINS[wrong](User(), f"http://{mesh.gateway}")
    stub = AuthServiceStub(channel)
    assert (
        await refused(stub.Login(nip_service_pb2.LoginRequest(authorization=authorization), timeout=10))
        is UNAUTHENTICATED
    )


async def test_a_login_event_is_good_once_on_any_replica(mesh: RunningMesh, channel: grpc.aio.Channel) -> None:
    authorization = User().authorization(f"http://{mesh.gateway}")
    stub = AuthServiceStub(channel)
    request = nip_service_pb2.LoginRequest(authorization=authorization)
    await stub.Login(request, timeout=10)
    for _ in range(8):
        assert await refused(stub.Login(request, timeout=10)) is UNAUTHENTICATED


def mint(mesh: RunningMesh, algorithm: str = "ES256", **changes: Any) -> str:
    """A token as the issuer makes it, but for `changes` to its claims."""
    key = StatePaths.beside(mesh.directory / "mesh.yaml").token_key.read_text()
    genuine = jwt.get_unverified_header(mesh.token(User().pubkey))
    claims = jwt.decode(mesh.token(User().pubkey), options={"verify_signature": False}) | changes
    return jwt.encode(claims, None if algorithm == "none" else key, algorithm, headers={"kid": genuine["kid"]})


async def test_a_genuine_token_is_accepted(mesh: RunningMesh, channel: grpc.aio.Channel) -> None:
    wallet = Wallet(channel, User(metadata=bearer(mint(mesh))))
    assert not (await wallet.call(wallet.nip.ListKeys, nip_service_pb2.ListKeysRequest())).keys


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"exp": 1_600_000_000}, UNAUTHENTICATED),
        ({"iss": "spiffe://nip.mesh/service/payment"}, UNAUTHENTICATED),
        ({"algorithm": "none"}, UNAUTHENTICATED),
        ({"aud": "another"}, grpc.StatusCode.PERMISSION_DENIED),
    ],
    ids=["expired", "wrong issuer", "unsigned", "wrong audience"],
)
async def test_a_token_with_wrong_claims_is_refused(
    mesh: RunningMesh, channel: grpc.aio.Channel, changes: dict[str, Any], code: grpc.StatusCode
) -> None:
    wallet = Wallet(channel, User(metadata=bearer(mint(mesh, **changes))))
    assert await refused(wallet.call(wallet.nip.ListKeys, nip_service_pb2.ListKeysRequest())) is code


async def test_a_watch_ends_when_its_token_does(mesh: RunningMesh, channel: grpc.aio.Channel, alice: User) -> None:
    account_id = await Wallet(channel, alice).open_account()
    token = mesh.succeed("token", "--subject", alice.pubkey, "--lifetime", "3").strip()
    opened_s = time.monotonic()
    payments = Wallet(channel, alice).payments
    request = payment_service_pb2.WatchPaymentsRequest(account_id=account_id, resume_after_sequence=0)
    watch = payments.WatchPayments(request, metadata=bearer(token), timeout=15)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await watch.read()
    assert (error.value.code(), reason_of(error.value)) == (UNAUTHENTICATED, "TOKEN_INVALID")
    assert 1 < time.monotonic() - opened_s < 6


async def test_a_tampered_or_missing_token_is_refused(channel: grpc.aio.Channel, alice: User) -> None:
    wallet = Wallet(channel, alice)
    request = nip_service_pb2.ListKeysRequest()
    header, payload, signature = alice.metadata[0][1].removeprefix("Bearer ").split(".")
    tampered = payload[:-2] + ("AA" if payload[-2:] != "AA" else "BB")
    for token in ("", "abc", f"{header}.{tampered}.{signature}", f"{header}.{payload}."):
        assert await refused(wallet.nip.ListKeys(request, metadata=bearer(token), timeout=10)) is UNAUTHENTICATED
    assert await refused(wallet.nip.ListKeys(request, timeout=10)) is UNAUTHENTICATED


async def test_claim_headers_of_a_client_are_not_believed(channel: grpc.aio.Channel, alice: User, bob: User) -> None:
    wallet = Wallet(channel, alice)
    account_id = await wallet.open_account()
    forged = (*bob.metadata, ("x-nipmesh-subject", alice.pubkey), ("x-nipmesh-role", "operator"))
    request = payment_service_pb2.GetAccountRequest(account_id=account_id)
    assert await refused(wallet.accounts.GetAccount(request, metadata=forged, timeout=10)) is grpc.StatusCode.NOT_FOUND
    certificate = (*bob.metadata, ("x-forwarded-client-cert", "URI=spiffe://nip.mesh/service/invoice"))
    assert (
        await refused(wallet.accounts.GetAccount(request, metadata=certificate, timeout=10))
        is grpc.StatusCode.NOT_FOUND
    )


async def test_anothers_things_look_like_missing_ones(
    channel: grpc.aio.Channel, alice: User, bob: User, operator: User
) -> None:
    owner, stranger = Wallet(channel, alice), Wallet(channel, bob)
    account_id = await funded(owner, Wallet(channel, operator), 10_000)
    own = await stranger.open_account()
    invoice = await owner.invoice(account_id, 1_000)
    key_id = await owner.create_key()
    missing, missing_account = str(uuid.uuid4()), f"customer:{uuid.uuid4()}"
    template = nip_pb2.EventTemplate(kind=1, created_at=1)
    payable = (await stranger.invoice(own, 1_000)).payment_request

    async def answers(key: str, account: str, invoice_id: str) -> list[tuple[grpc.StatusCode, str]]:
        attempts = [
            (stranger.nip.GetKey, nip_service_pb2.GetKeyRequest(key_id=key)),
            (stranger.nip.SignEvent, nip_service_pb2.SignEventRequest(key_id=key, template=template)),
            (stranger.accounts.GetAccount, payment_service_pb2.GetAccountRequest(account_id=account)),
            (
                stranger.payments.PayInvoice,
                payment_service_pb2.PayInvoiceRequest(
                    request_id=request_id(), account_id=account, payment_request=payable
                ),
            ),
            (
                stranger.invoices.CreateInvoice,
                invoice_service_pb2.CreateInvoiceRequest(request_id=request_id(), account_id=account, amount_msat=1),
            ),
            (stranger.invoices.GetInvoice, invoice_service_pb2.GetInvoiceRequest(invoice_id=invoice_id)),
        ]
        found = []
        for method, request in attempts:
            with pytest.raises(grpc.RpcError) as error:
                await stranger.call(method, request)
            found.append(
                (
                    error.value.code(),
                    str(error.value.details()).replace(key, "?").replace(account, "?").replace(invoice_id, "?"),
                )
            )
        return found

    theirs = await answers(key_id, account_id, invoice.invoice_id)
    assert theirs == await answers(missing, missing_account, missing)
    assert {code for code, _ in theirs} == {grpc.StatusCode.NOT_FOUND}
    assert (await owner.account(account_id)).balance_msat == 10_000


async def test_what_operators_may_do_no_user_may(channel: grpc.aio.Channel, alice: User) -> None:
    wallet = Wallet(channel, alice)
    account_id = await wallet.open_account()
    ledger = wallet.ledger
    common = {"request_id": request_id(), "account_id": account_id}
    attempts = [
        (ledger.Deposit, payment_service_pb2.DepositRequest(**common, amount_msat=1)),
        (ledger.Withdraw, payment_service_pb2.WithdrawRequest(**common, amount_msat=1)),
        (ledger.FreezeAccount, payment_service_pb2.FreezeAccountRequest(**common)),
        (ledger.UnfreezeAccount, payment_service_pb2.UnfreezeAccountRequest(**common)),
        (ledger.GetTransfer, payment_service_pb2.GetTransferRequest(transfer_id=str(uuid.uuid4()))),
        (ledger.SetQuota, payment_service_pb2.SetQuotaRequest(**common)),
        (ledger.ListAccountEvents, payment_service_pb2.ListAccountEventsRequest(account_id=account_id)),
        (ledger.GetLedgerHead, payment_service_pb2.GetLedgerHeadRequest()),
        (
            ledger.CreateTransfer,
            payment_service_pb2.CreateTransferRequest(
                request_id=request_id(), void_pending_transfer_id=str(uuid.uuid4())
            ),
        ),
    ]
    for method, request in attempts:
        assert await refused(wallet.call(method, request)) is grpc.StatusCode.PERMISSION_DENIED
    assert (await wallet.account(account_id)).balance_msat == 0


async def test_tokens_and_private_keys_reach_no_log(mesh: RunningMesh, channel: grpc.aio.Channel, alice: User) -> None:
    wallet = Wallet(channel, alice)
    await wallet.create_key()
    logs = mesh.logs()
    assert "nipmesh.nip.v1.NipService/CreateKey" in logs
    assert alice.metadata[0][1].removeprefix("Bearer ") not in logs
    assert alice.private_key.to_hex() not in logs


@pytest.mark.parametrize(
    "path",
    [
        "/nipmesh.invoice.v1.InvoiceSettlementService/LockInvoice",
        "/nipmesh.invoice.v1.InvoiceSettlementService/CommitInvoice",
        "/nipmesh.nip.v1.NipService/Nothing",
        "/nothing.v1.Nothing/Nothing",
    ],
)
async def test_what_is_not_exposed_does_not_exist(channel: grpc.aio.Channel, alice: User, path: str) -> None:
    call = channel.unary_unary(path)
    assert await refused(call(b"", metadata=alice.metadata, timeout=10)) is grpc.StatusCode.UNIMPLEMENTED
