"""WalletPaymentService: the NIP service pays for users who gave an app leave, in a scope of its own."""

from __future__ import annotations

import uuid

import grpc

from nipmesh.payment.v1 import payment_pb2
from nipmesh.payment.v1 import payment_service_pb2 as pb
from nipmesh.payment.v1 import wallet_service_pb2 as wallet_pb
from services.chassis.testing import as_gateway, as_service, as_user
from support.payment_mesh import refused, request_id
from support.payment_service import ALICE, BOB, DESK, Service
from support.settlement import payment_request

CODE = grpc.StatusCode
NIP = as_service("nip")
METHODS = {
    "PayInvoiceFor": wallet_pb.PayInvoiceForRequest,
    "GetPaymentFor": wallet_pb.GetPaymentForRequest,
    "ListPaymentsFor": wallet_pb.ListPaymentsForRequest,
    "GetAccountFor": wallet_pb.GetAccountForRequest,
    "GetNetwork": wallet_pb.GetNetworkRequest,
}


async def pay(service: Service, user: str, account_id: str, text: str, identifier: str = "") -> pb.PayInvoiceResponse:
    request = pb.PayInvoiceRequest(request_id=identifier or request_id(), account_id=account_id, payment_request=text)
    request.wait_duration.FromSeconds(2)
    wrapped = wallet_pb.PayInvoiceForRequest(actor_pubkey=user, request=request)
    return (await service.wallet.PayInvoiceFor(wrapped, metadata=NIP, timeout=10)).response


async def get(service: Service, user: str, **key: str) -> payment_pb2.Payment:
    wrapped = wallet_pb.GetPaymentForRequest(actor_pubkey=user, request=pb.GetPaymentRequest(**key))
    return (await service.wallet.GetPaymentFor(wrapped, metadata=NIP)).response.payment


STRANGERS = [
    ((), "NOT_AUTHENTICATED"),
    (as_gateway(), "CALLER_NOT_ALLOWED"),
    (as_user(ALICE), "CALLER_NOT_ALLOWED"),
    (DESK, "CALLER_NOT_ALLOWED"),
    (as_service("invoice"), "CALLER_NOT_ALLOWED"),
    ((*as_service("invoice"), ("x-nipmesh-subject", ALICE)), "CALLER_NOT_ALLOWED"),
]


async def test_only_the_nip_service_acts_for_users(service: Service) -> None:
    for method, request_type in METHODS.items():
        for metadata, reason in STRANGERS:
            call = getattr(service.wallet, method)(request_type(), metadata=metadata)
            assert (await refused(call))[1] == reason, (method, metadata)


async def test_the_nip_service_gets_no_further_than_its_own_methods(service: Service) -> None:
    account_id = await service.open(ALICE, 5)
    call = service.accounts.GetAccount(pb.GetAccountRequest(account_id=account_id), metadata=NIP)
    assert (await refused(call))[1] == "CALLER_NOT_ALLOWED"


async def test_a_payment_for_a_user_is_paid_once_and_read_by_its_request(service: Service) -> None:
    account_id = await service.open(ALICE, 100_000)
    text, identifier = payment_request(amount_msat=50_000), request_id()
    first = await pay(service, ALICE, account_id, text, identifier)
    again = await pay(service, ALICE, account_id, text, identifier.upper())
    assert first.payment.state == payment_pb2.Payment.STATE_SUCCEEDED
    assert (again.replayed, again.payment.payment_id) == (True, first.payment.payment_id)
    assert await service.balance(account_id) == 100_000 - 50_000 - first.payment.fee_msat
    for key in ({"request_id": identifier}, {"payment_hash": first.payment.payment_hash}):
        assert (await get(service, ALICE, **key)).payment_id == first.payment.payment_id
    assert (await refused(get(service, BOB, request_id=identifier)))[1] == "PAYMENT_NOT_FOUND"


async def test_requests_of_a_wallet_never_meet_those_of_its_user(service: Service) -> None:
    account_id = await service.open(ALICE, 100_000)
    identifier = request_id()
    own = await service.pay(ALICE, account_id, payment_request(amount_msat=10_000), identifier)
    assert (await refused(get(service, ALICE, request_id=identifier)))[1] == "PAYMENT_NOT_FOUND"
    app = await pay(service, ALICE, account_id, payment_request(amount_msat=20_000), identifier)
    assert not app.replayed
    assert (await get(service, ALICE, request_id=identifier)).amount_msat == 20_000
    mine = await service.payments.GetPayment(pb.GetPaymentRequest(request_id=identifier), metadata=as_user(ALICE))
    assert (mine.payment.payment_id, mine.payment.amount_msat) == (own.payment_id, 10_000)
    wrapped = wallet_pb.ListPaymentsForRequest(actor_pubkey=ALICE, request=pb.ListPaymentsRequest(page_size=1))
    page = (await service.wallet.ListPaymentsFor(wrapped, metadata=NIP)).response
    assert [payment.amount_msat for payment in page.payments] == [20_000]
    stolen = pb.ListPaymentsRequest(page_size=1, page_token=page.next_page_token)
    assert (await refused(service.payments.ListPayments(stolen, metadata=as_user(ALICE))))[1] == "PAGE_TOKEN_INVALID"
    wrapped.request.page_token = page.next_page_token
    page = (await service.wallet.ListPaymentsFor(wrapped, metadata=NIP)).response
    assert [payment.amount_msat for payment in page.payments] == [10_000]


async def test_a_wallet_reaches_only_its_users_accounts(service: Service) -> None:
    alices, bobs = await service.open(ALICE, 9_000), await service.open(BOB, 9_000)
    wrapped = wallet_pb.GetAccountForRequest(actor_pubkey=ALICE, request=pb.GetAccountRequest(account_id=alices))
    assert (await service.wallet.GetAccountFor(wrapped, metadata=NIP)).response.account.balance_msat == 9_000
    wrapped.request.account_id = bobs
    assert (await refused(service.wallet.GetAccountFor(wrapped, metadata=NIP)))[1] == "ACCOUNT_NOT_FOUND"
    theft = pay(service, ALICE, bobs, payment_request(amount_msat=1_000))
    assert (await refused(theft))[1] == "ACCOUNT_NOT_FOUND"
    assert await service.balance(bobs) == 9_000


async def test_refusals_reach_the_wallet_with_their_reasons(service: Service) -> None:
    account_id = await service.open(ALICE, 1_000)
    poor = pay(service, ALICE, account_id, payment_request(amount_msat=50_000))
    assert await refused(poor) == (CODE.FAILED_PRECONDITION, "INSUFFICIENT_BALANCE")
    assert (await refused(pay(service, ALICE, account_id, "lnbc1")))[1] == "PAYMENT_REQUEST_INVALID"
    for request in (
        wallet_pb.PayInvoiceForRequest(request=pb.PayInvoiceRequest(request_id=str(uuid.uuid4()))),
        wallet_pb.PayInvoiceForRequest(actor_pubkey=ALICE),
        wallet_pb.PayInvoiceForRequest(actor_pubkey="A" * 64, request=pb.PayInvoiceRequest()),
    ):
        assert (await refused(service.wallet.PayInvoiceFor(request, metadata=NIP)))[1] == "REQUEST_INVALID"


async def test_the_network_is_told(service: Service) -> None:
    network = await service.wallet.GetNetwork(wallet_pb.GetNetworkRequest(), metadata=NIP)
    assert (network.currency, network.simulated) == ("bcrt", True)
