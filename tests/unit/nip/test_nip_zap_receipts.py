"""NIP-57: receipts that are made here, each rule of checking one, and the printed example."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import nostr_sdk
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.secret import SecretBytes
from services.lightning.bolt11 import encode
from services.lightning.node_key import NodeKey
from services.lightning.payment_request import REGTEST, PaymentRequest
from services.nip.domain.zap_receipts import receipt_template, validate_receipt
from services.nostr.bip340 import Signer
from services.nostr.event import Event
from services.nostr.event_json import event_of_json, json_of_event
from services.nostr.zaps import ZapError, ZapProblem
from support.zaps import RECIPIENT, SENDER, ZAPPED, signed, zap_text

NIP_57 = Path(__file__).resolve().parents[4] / "shared" / "vectors" / "nips" / "57.md"
ZAP_KEY = Signer(SecretBytes(b"\x0b" * 32))
ZAP_PUBKEY = ZAP_KEY.public_key.hex()
PREIMAGE = b"\x05" * 32
SETTLED = 1_700_000_500


def invoice(text: str, *, amount_msat: int | None = 21_000, description_hash: str | None = None) -> str:
    """A payment request that commits to the zap request."""
    key = NodeKey(SecretBytes(b"\x01" * 32))
    request = PaymentRequest(
        currency=REGTEST,
        payee_pubkey=key.public_key,
        payment_hash=hashlib.sha256(PREIMAGE).hexdigest(),
        payment_secret="11" * 32,
        amount_msat=amount_msat,
        create_time_s=1_700_000_000,
        description_hash=description_hash or hashlib.sha256(text.encode()).hexdigest(),
    )
    return encode(request, key)


REQUEST = zap_text(
    ("amount", "21000"), ("e", ZAPPED, "wss://hint.example.com"), ("k", "1"), ("lnurl", "lnurl1abc"), ("P", ZAP_PUBKEY)
)
BOLT11 = invoice(REQUEST)
TEMPLATE = receipt_template(REQUEST, BOLT11, settle_time_seconds=SETTLED)


def _receipt(tags: Any = TEMPLATE.tags, *, kind: int = 9_735, signer: Signer = ZAP_KEY) -> Event:
    return signed(signer, kind=kind, tags=tags, created_at=SETTLED)


def _changed(name: str, *values: tuple[str, ...]) -> Event:
    """A receipt, genuine, whose tags of this name are replaced."""
    return _receipt([tag for tag in TEMPLATE.tags if tag[0] != name] + [(name, *value) for value in values])


def _problem(receipt: Event, **changes: Any) -> ZapProblem:
    with pytest.raises(ZapError) as refused:
        validate_receipt(receipt, **{"nostr_pubkey": ZAP_PUBKEY, "lnurl": "lnurl1abc"} | changes)
    return refused.value.problem


def test_a_receipt_says_what_the_nip_wants() -> None:
    receipt = _receipt()
    assert (receipt.content, receipt.created_at) == ("", SETTLED)
    assert set(receipt.tags) == {
        ("p", RECIPIENT),
        ("e", ZAPPED, "wss://hint.example.com"),
        ("k", "1"),
        ("P", SENDER.public_key.hex()),
        ("bolt11", BOLT11),
        ("description", REQUEST),
    }
    assert nostr_sdk.Event.from_json(json_of_event(receipt)).verify()


def test_whoever_makes_it_again_makes_the_same() -> None:
    assert receipt_template(REQUEST, BOLT11, settle_time_seconds=SETTLED) == TEMPLATE
    assert _receipt() == _receipt()


def test_a_receipt_of_ours_is_valid() -> None:
    found = validate_receipt(_receipt(), nostr_pubkey=ZAP_PUBKEY, lnurl="lnurl1abc")
    assert found.request.text == REQUEST
    assert (found.invoice.amount_msat, found.invoice.payment_hash) == (21_000, hashlib.sha256(PREIMAGE).hexdigest())


@pytest.mark.parametrize(
    ("receipt", "problem"),
    [
        (_receipt(kind=9_734), ZapProblem.WRONG_KIND),
        (_receipt(signer=SENDER), ZapProblem.WRONG_AUTHOR),
        (_changed("bolt11"), ZapProblem.WRONG_INVOICE),
        (_changed("bolt11", ("lnbcrt1",)), ZapProblem.WRONG_INVOICE),
        (_changed("bolt11", (BOLT11,), (BOLT11,)), ZapProblem.WRONG_INVOICE),
        (_changed("bolt11", (invoice(REQUEST, description_hash="00" * 32),)), ZapProblem.WRONG_DESCRIPTION),
        (_changed("bolt11", (invoice(REQUEST, amount_msat=22_000),)), ZapProblem.WRONG_AMOUNT),
        (_changed("bolt11", (invoice(REQUEST, amount_msat=None),)), ZapProblem.WRONG_AMOUNT),
        (_changed("description"), ZapProblem.WRONG_DESCRIPTION),
        (_changed("description", (REQUEST + " ",)), ZapProblem.WRONG_DESCRIPTION),
        (_changed("p"), ZapProblem.WRONG_TAGS),
        (_changed("p", ("ef" * 32,)), ZapProblem.WRONG_TAGS),
        (_changed("e"), ZapProblem.WRONG_TAGS),
        (_changed("e", ("ef" * 32,)), ZapProblem.WRONG_TAGS),
        (_changed("a", (f"1:{RECIPIENT}:",)), ZapProblem.WRONG_TAGS),
        (_changed("P", (RECIPIENT,)), ZapProblem.WRONG_SENDER),
        (_changed("preimage", ("00" * 32,)), ZapProblem.WRONG_PREIMAGE),
        (_changed("preimage", ("x",)), ZapProblem.WRONG_PREIMAGE),
        (replace(_receipt(), content="changed"), ZapProblem.WRONG_ID),
        (replace(_receipt(), sig="00" * 64), ZapProblem.WRONG_SIGNATURE),
        (replace(_receipt(), sig=""), ZapProblem.NOT_AN_EVENT),
    ],
)
def test_each_rule(receipt: Event, problem: ZapProblem) -> None:
    assert _problem(receipt) is problem


@pytest.mark.parametrize("receipt", [_changed("P"), _changed("preimage", (PREIMAGE.hex(),)), _changed("k")])
def test_what_may_be_absent_or_there(receipt: Event) -> None:
    assert validate_receipt(receipt, nostr_pubkey=ZAP_PUBKEY).request.text == REQUEST


def test_the_lnurl_is_compared_where_both_say_one() -> None:
    assert _problem(_receipt(), lnurl="lnurl1x") is ZapProblem.WRONG_LNURL


def test_a_request_that_wanted_another_author() -> None:
    other = zap_text(("P", "ef" * 32))
    template = receipt_template(other, invoice(other), settle_time_seconds=SETTLED)
    assert _problem(_receipt(template.tags)) is ZapProblem.WRONG_SENDER


def test_a_forged_request_in_a_genuine_receipt() -> None:
    forged = REQUEST.replace('"content":"Zap!"', '"content":"more"')
    template = receipt_template(forged, invoice(forged), settle_time_seconds=SETTLED)
    assert _problem(_receipt(template.tags)) is ZapProblem.WRONG_DESCRIPTION


def test_the_receipt_printed_in_nip_57_is_refused() -> None:
    if not NIP_57.exists():
        pytest.skip("the NIPs are not beside the checkout (../shared/vectors)")
    printed = re.findall(r"```json\n(.*?)```", NIP_57.read_text(), re.DOTALL)[1]
    receipt = event_of_json(re.sub(r'"content": "",\s*}', f'"content": "", "sig": "{"00" * 64}"}}', printed))
    problem = _problem(receipt, nostr_pubkey=receipt.pubkey, lnurl="")
    assert problem is ZapProblem.WRONG_DESCRIPTION, "its invoice is for another text"


@given(
    tags=st.lists(
        st.lists(
            st.sampled_from(["p", "P", "bolt11", "description", "e", BOLT11, REQUEST, RECIPIENT, "preimage"]),
            min_size=1,
        ),
        max_size=8,
    )
)
def test_any_tags_are_a_receipt_or_refused(tags: list[list[str]]) -> None:
    try:
        validate_receipt(_receipt(tags), nostr_pubkey=ZAP_PUBKEY)
    except ZapError as error:
        assert error.problem in ZapProblem  # noqa: PT017  # either outcome is right
