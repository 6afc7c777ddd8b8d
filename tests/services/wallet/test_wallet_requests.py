"""Requests of apps over a real relay, answered by the three services: each method, each refusal."""

from __future__ import annotations

import hashlib
import secrets
import time
from typing import Any

import pytest

from nipmesh.nip.v1 import wallet_connect_service_pb2 as pb
from services.chassis.testing import as_user
from support.wallet_connect import ALICE, ALL_METHODS, BOB, WalletMesh, app_of, request_id, terms

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_an_app_makes_pays_and_looks_up_invoices(mesh: WalletMesh) -> None:
    alices, bobs = await mesh.open(ALICE, 1_000_000), await mesh.open(BOB)
    one, other = await mesh.connect(ALICE, alices), await mesh.connect(BOB, bobs)
    async with app_of(one.uri) as payer, app_of(other.uri) as payee:
        metadata = {"comment": "é" * 2_000}
        made = (
            await payee.ask(
                "make_invoice", {"amount": 50_000, "description": "tea", "expiry": 600, "metadata": metadata}
            )
        )["result"]
        assert (made["type"], made["state"], made["amount"], made["description"]) == (
            "incoming",
            "pending",
            50_000,
            "tea",
        )
        assert (made["expires_at"] - made["created_at"], made["metadata"]) == (600, metadata)
        note = {"recipient_data": {"identifier": "bob@example.com"}}
        paid = await payer.ask("pay_invoice", {"invoice": made["invoice"], "metadata": note})
        assert paid["error"] is None
        assert hashlib.sha256(bytes.fromhex(paid["result"]["preimage"])).hexdigest() == made["payment_hash"]
        assert paid["result"]["fees_paid"] == 0
        incoming = (await payee.ask("lookup_invoice", {"payment_hash": made["payment_hash"]}))["result"]
        outgoing = (await payer.ask("lookup_invoice", {"invoice": made["invoice"]}))["result"]
        assert (incoming["type"], outgoing["type"]) == ("incoming", "outgoing")
        for found in (incoming, outgoing):
            assert (found["state"], found["preimage"]) == ("settled", paid["result"]["preimage"])
            assert found["settled_at"] >= found["created_at"]
            assert found["description"] == "tea"
        assert (incoming["metadata"], outgoing["metadata"]) == (metadata, note)
        assert (await payee.ask("get_balance"))["result"] == {"balance": 50_000}
        again = await payer.ask("pay_invoice", {"invoice": made["invoice"]})
        assert again["error"]["code"] == "PAYMENT_FAILED"
    assert await mesh.balance(alices) == 950_000


async def test_what_the_wallet_says_of_itself(mesh: WalletMesh) -> None:
    made = await mesh.connect(ALICE, await mesh.open(ALICE), terms(("get_info", "get_balance"), ("payment_sent",)))
    async with app_of(made.uri) as app:
        info = (await app.told(1))[0]
        assert (info.kind, info.content) == (13194, "get_info get_balance notifications")
        assert dict(info.tags) == {"encryption": "nip44_v2 nip04", "notifications": "payment_sent"}
        result = (await app.ask("get_info"))["result"]
        assert result == {
            "alias": "nip",
            "network": "regtest",
            "methods": ["get_info", "get_balance"],
            "notifications": ["payment_sent"],
        }


async def test_a_hold_invoice_is_held_settled_and_canceled(mesh: WalletMesh) -> None:
    alices, bobs = await mesh.open(ALICE, 1_000_000), await mesh.open(BOB)
    one, other = await mesh.connect(ALICE, alices), await mesh.connect(BOB, bobs)
    async with app_of(one.uri) as payer, app_of(other.uri) as payee:
        for settles in (True, False):
            preimage = secrets.token_bytes(32)
            payment_hash = hashlib.sha256(preimage).hexdigest()
            params = {"amount": 10_000, "payment_hash": payment_hash, "min_cltv_expiry_delta": 144}
            made = (await payee.ask("make_hold_invoice", params))["result"]
            assert made["payment_hash"] == payment_hash
            taken = await payee.ask("make_hold_invoice", params)
            assert taken["error"]["code"] == "OTHER"
            early = await payee.ask("settle_hold_invoice", {"preimage": preimage.hex()})
            assert early["error"]["code"] == "OTHER"
            paying = payer.request("pay_invoice", {"invoice": made["invoice"]})
            await payer.send(paying)
            while (await payee.ask("lookup_invoice", {"payment_hash": payment_hash}))["result"]["state"] != "accepted":
                pass
            assert not payer.responses.get(paying.id)
            pending = (await mesh.connection(ALICE, one.connection.connection_id)).pending_msat
            assert pending == 20_000, "10,000 and as much for fees"
            stolen = await payer.ask("cancel_hold_invoice", {"payment_hash": payment_hash})
            assert stolen["error"]["code"] == "NOT_FOUND"
            if settles:
                decided = await payee.ask("settle_hold_invoice", {"preimage": preimage.hex()})
            else:
                decided = await payee.ask("cancel_hold_invoice", {"payment_hash": payment_hash})
            assert (decided["error"], decided["result"]) == (None, {})
            answer = await payer.answer(paying)
            if settles:
                assert answer["result"]["preimage"] == preimage.hex()
            else:
                assert answer["error"]["code"] == "PAYMENT_FAILED"
            wallet = await mesh.connection(ALICE, one.connection.connection_id)
            assert (wallet.spent_msat, wallet.pending_msat) == (10_000, 0)
    assert (await mesh.balance(alices), await mesh.balance(bobs)) == (990_000, 10_000)


async def test_transactions_are_listed_newest_first_and_merged(mesh: WalletMesh) -> None:
    account_id, other = await mesh.open(ALICE, 1_000_000), await mesh.open(ALICE)
    bobs = await mesh.open(BOB, 1_000_000)
    made = await mesh.connect(ALICE, account_id)
    for amount_msat in (1_000, 2_000, 3_000):
        await mesh.pay(ALICE, account_id, (await mesh.invoice(BOB, bobs, amount_msat)).payment_request)
        text = (await mesh.invoice(ALICE, account_id, amount_msat + 100)).payment_request
        await mesh.pay(BOB, bobs, text)
    await mesh.invoice(ALICE, account_id, 7_000)
    await mesh.invoice(ALICE, other, 8_000)

    async def listed(**params: Any) -> list[int]:
        answer = await app.ask("list_transactions", params)
        assert answer["error"] is None, answer
        return [found["amount"] for found in answer["result"]["transactions"]]

    async with app_of(made.uri) as app:
        paid = [3_100, 3_000, 2_100, 2_000, 1_100, 1_000]
        assert await listed() == paid
        assert await listed(unpaid=True) == [7_000, *paid]
        assert await listed(limit=2, offset=1) == paid[1:3]
        assert await listed(offset=6) == []
        assert await listed(type="incoming") == [3_100, 2_100, 1_100]
        assert await listed(type="outgoing", limit=2) == [3_000, 2_000]
        newest = (await app.ask("list_transactions", {"limit": 1}))["result"]["transactions"][0]["created_at"]
        assert await listed(**{"from": newest + 1}) == []
        assert await listed(until=newest) == paid
        assert await listed(**{"from": 0, "until": newest - 86_400}) == []
        assert await listed(**{"from": newest, "until": newest - 1}) == []
        assert (await app.ask("list_transactions", {"offset": 1_001}))["error"]["code"] == "OTHER"


PROBES = {
    "pay_invoice": {"invoice": "lnbc1"},
    "make_invoice": {"amount": 1_000},
    "lookup_invoice": {"payment_hash": "ab" * 32},
    "list_transactions": {},
    "get_balance": {},
    "get_info": {},
    "make_hold_invoice": {"amount": 1_000, "payment_hash": "cd" * 32},
    "settle_hold_invoice": {"preimage": "ef" * 32},
    "cancel_hold_invoice": {"payment_hash": "ef" * 32},
}


async def test_a_connection_may_do_what_its_terms_name_and_nothing_else(mesh: WalletMesh) -> None:
    """Every method under every single permission: 81 cells."""
    account_id = await mesh.open(ALICE)
    for allowed in ALL_METHODS:
        made = await mesh.connect(ALICE, account_id, terms((allowed,)))
        async with app_of(made.uri) as app:
            for method in ALL_METHODS:
                error = (await app.ask(method, PROBES[method]))["error"]
                assert (error is not None and error["code"] == "RESTRICTED") == (method != allowed), (allowed, method)


async def test_what_is_not_there_is_not_implemented(mesh: WalletMesh) -> None:
    made = await mesh.connect(ALICE, await mesh.open(ALICE))
    async with app_of(made.uri) as app:
        for method in ("pay_keysend", "multi_pay_invoice", "multi_pay_keysend", "sign_message", "Pay_Invoice", ""):
            answer = await app.ask(method)
            assert (answer["result_type"], answer["error"]["code"]) == (method, "NOT_IMPLEMENTED")


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("pay_invoice", {}, "OTHER"),
        ("pay_invoice", {"invoice": "lnbc1"}, "OTHER"),
        ("pay_invoice", {"invoice": 7}, "OTHER"),
        ("pay_invoice", {"invoice": "x" * 7_090}, "OTHER"),
        ("make_invoice", {}, "OTHER"),
        ("make_invoice", {"amount": "1000"}, "OTHER"),
        ("make_invoice", {"amount": True}, "OTHER"),
        ("make_invoice", {"amount": 1.5}, "OTHER"),
        ("make_invoice", {"amount": -1}, "OTHER"),
        ("make_invoice", {"amount": 2**63}, "OTHER"),
        ("make_invoice", {"amount": 1, "description": "x" * 640}, "OTHER"),
        ("make_invoice", {"amount": 1, "description": "\0"}, "OTHER"),
        ("make_invoice", {"amount": 1, "expiry": 31_536_001}, "OTHER"),
        ("make_invoice", {"amount": 1, "description_hash": "ab"}, "OTHER"),
        ("make_hold_invoice", {"amount": 1}, "OTHER"),
        ("lookup_invoice", {}, "OTHER"),
        ("lookup_invoice", {"payment_hash": "ab" * 32}, "NOT_FOUND"),
        ("settle_hold_invoice", {"preimage": "ab" * 32}, "NOT_FOUND"),
        ("cancel_hold_invoice", {"payment_hash": "ab" * 32}, "NOT_FOUND"),
        ("list_transactions", {"type": "sideways"}, "OTHER"),
        ("list_transactions", {"unpaid": "yes"}, "OTHER"),
        ("list_transactions", {"from": -1}, "OTHER"),
        ("get_balance", [], None),
        ("get_balance", [1], "OTHER"),
    ],
)
async def test_parameters_that_cannot_be_right_are_refused(
    mesh: WalletMesh, method: str, params: Any, code: str | None
) -> None:
    made = await _shared(mesh)
    async with app_of(made.uri) as app:
        error = (await app.ask(method, params))["error"]
        assert (None if error is None else error["code"]) == code


_MADE: dict[int, Any] = {}


async def _shared(mesh: WalletMesh) -> Any:
    """One connection for all of those."""
    if id(mesh) not in _MADE:
        _MADE[id(mesh)] = await mesh.connect(ALICE, await mesh.open(ALICE))
    return _MADE[id(mesh)]


async def test_money_that_is_not_there(mesh: WalletMesh) -> None:
    bobs = await mesh.open(BOB)
    made = await mesh.connect(ALICE, await mesh.open(ALICE, 5_000))
    async with app_of(made.uri) as app:
        invoice = await mesh.invoice(BOB, bobs, 6_000)
        answer = await app.ask("pay_invoice", {"invoice": invoice.payment_request})
        assert answer["error"]["code"] == "INSUFFICIENT_BALANCE"
        wallet = await mesh.connection(ALICE, made.connection.connection_id)
        assert (wallet.spent_msat, wallet.pending_msat) == (0, 0)
        other = await app.ask("pay_invoice", {"invoice": invoice.payment_request, "amount": 1_000})
        assert other["error"]["code"] == "OTHER"
        open_invoice = await mesh.invoice(BOB, bobs, 0, any_amount=True)
        assert (await app.ask("pay_invoice", {"invoice": open_invoice.payment_request}))["error"]["code"] == "OTHER"
        paid = await app.ask("pay_invoice", {"invoice": open_invoice.payment_request, "amount": 4_000})
        assert paid["error"] is None
    assert await mesh.balance(bobs) == 4_000


async def test_each_encryption_is_answered_in_kind(mesh: WalletMesh) -> None:
    made = await mesh.connect(ALICE, await mesh.open(ALICE, 9_000))
    request = {"method": "get_balance", "params": {}}
    async with app_of(made.uri) as app:
        for tags, content, code in (
            ((("encryption", "nip44_v2"),), app.sealed(request), None),
            ((("encryption", "nip04"),), app.sealed_nip04(request), None),
            ((), app.sealed_nip04(request), None),
            ((), app.sealed(request), "OTHER"),
            ((("encryption", "nip44_v2"),), app.sealed_nip04(request), "OTHER"),
            ((("encryption", "nip44_v3"),), app.sealed(request), "UNSUPPORTED_ENCRYPTION"),
            ((("encryption", "nip44_v2"),), app.sealed("no JSON"), "OTHER"),
            ((("encryption", "nip44_v2"),), app.sealed("[]"), "OTHER"),
            ((("encryption", "nip44_v2"),), app.sealed('{"method": 7}'), "OTHER"),
            ((("encryption", "nip44_v2"),), app.sealed("[" * 10_000), "OTHER"),
        ):
            event = app.event(content, *tags)
            await app.send(event)
            answer = await app.answer(event)
            assert (answer["error"] or {}).get("code") == code, (tags, answer)
            nip04 = "?iv=" in app.responses[event.id][0].content
            assert nip04 == (not tags or tags[0][1] == "nip04")


async def test_requests_that_do_not_count_are_ignored(mesh: WalletMesh) -> None:
    made = await mesh.connect(ALICE, await mesh.open(ALICE))
    content = {"method": "get_balance", "params": {}}
    async with app_of(made.uri) as app:
        now = app.request("get_info").created_at
        tag = ("encryption", "nip44_v2")
        ignored = [
            app.event(app.sealed(content), tag, ("expiration", "soon")),
            app.event(app.sealed(content), tag, ("p", "ab" * 32)),
            app.event(app.sealed(content), tag, created_at=now - 700),
            app.event(app.sealed(content), tag, created_at=now + 700),
            app.event(app.sealed(content), tag, kind=23199),
        ]
        for event in ignored:
            await app.send(event)
        good = app.event(app.sealed(content), tag, ("expiration", str(now + 60)))
        await app.send(good)
        assert (await app.answer(good))["error"] is None
        assert set(app.responses) == {good.id}


async def test_the_same_event_pays_once_and_is_answered_the_same(mesh: WalletMesh) -> None:
    alices, bobs = await mesh.open(ALICE, 100_000), await mesh.open(BOB)
    made = await mesh.connect(ALICE, alices)
    async with app_of(made.uri) as app:
        invoice = await mesh.invoice(BOB, bobs, 1_000, any_amount=True)
        event = app.request("pay_invoice", {"invoice": invoice.payment_request, "amount": 10_000})
        for _ in range(3):
            await app.send(event)
        first = await app.answer(event)
        await app.send(event)
        await app.ask("get_info")
        assert first["error"] is None
        assert {response.id for response in app.responses[event.id]} == {app.responses[event.id][0].id}
    assert (await mesh.balance(alices), await mesh.balance(bobs)) == (90_000, 10_000)


async def test_strangers_and_ended_connections_are_unauthorized(mesh: WalletMesh) -> None:
    account_id = await mesh.open(ALICE)
    made, other = await mesh.connect(ALICE, account_id), await mesh.connect(ALICE, account_id)
    async with app_of(made.uri) as app, app_of(other.uri) as stranger:
        stranger.service_pubkey = app.service_pubkey
        event = stranger.request("get_balance")
        await app.send(event)
        response = await app.response(event.id)
        assert stranger.opened(response)["error"]["code"] == "UNAUTHORIZED"
        assert ("p", stranger.pubkey) in response.tags
        await _revoke(mesh, made.connection.connection_id)
        assert (await app.ask("get_balance"))["error"]["code"] == "UNAUTHORIZED"
        info = (await app.told(2))[-1]
        assert (info.kind, info.content) == (13194, "")
    expired = await mesh.connect(ALICE, account_id, terms(expire_time={"seconds": int(time.time()) - 5}))
    async with app_of(expired.uri) as app:
        assert (await app.ask("get_balance"))["error"]["code"] == "UNAUTHORIZED"


async def _revoke(mesh: WalletMesh, connection_id: str) -> None:
    request = pb.RevokeWalletConnectionRequest(request_id=request_id(), connection_id=connection_id)
    await mesh.wallets.RevokeWalletConnection(request, metadata=as_user(ALICE))


async def test_too_many_requests_are_told_so_and_then_ignored(mesh: WalletMesh) -> None:
    made = await mesh.connect(ALICE, await mesh.open(ALICE))
    async with app_of(made.uri) as app:
        events = [app.request("get_info", {"n": number}) for number in range(125)]
        for event in events:
            await app.send(event)
        answers = [await app.answer(event) for event in events[:120]]
        limited = [answer["error"] is not None and answer["error"]["code"] == "RATE_LIMITED" for answer in answers]
        assert (limited.count(False), limited.count(True)) == (60, 60)
        assert not any(event.id in app.responses for event in events[120:])
