"""BOLT11 against the specification's own valid and invalid invoices."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from services.chassis.secret import SecretBytes
from services.lightning.bolt11 import decode, encode
from services.lightning.node_key import NodeKey
from services.lightning.payment_request import Bolt11Error, PaymentRequest

SPECIFICATION = Path(__file__).resolve().parents[3].parent / "shared/vectors/bolts/11-payment-encoding.md"
SECRET = SecretBytes(bytes.fromhex("e126f68f7eafcc8b74f54d269fe206be715000f94dac067d1c04a8ca3b2db734"))
PAYEE = "03e7156ae33b0a208d0744199163177e909e80176e55d97a2f221ede0f934dd9ad"
HASH = "0001020304050607080900010203040506070809000102030405060708090102"
CAUSES = {
    "feature 100": "field 9: requires the unknown feature 100",
    "checksum is invalid": "bech32: the checksum is wrong",
    "no 1": "bech32: there is no separator",
    "mixed case": "bech32: upper and lower case are mixed",
    "not recoverable": "signature: yields no public key",
    "too short": "data: is too short",
    "Invalid multiplier": "amount: has an unknown multiplier",
    "sub-millisatoshi": "amount: has a fraction of a millisatoshi",
    "Missing required `s`": "field s: the payment secret is missing",
    "Non canonical signature": "signature: is not low-S",
}


@pytest.fixture(scope="module")
def examples() -> tuple[dict[str, str], dict[str, str]]:
    """Title -> text, of the valid and of the invalid invoices."""
    if not SPECIFICATION.exists():
        pytest.skip(f"the specification is not here: {SPECIFICATION}")
    text = SPECIFICATION.read_text(encoding="utf-8").split("\n# Examples\n")[1]
    valid, invalid = text.split("# Examples of Invalid Invoices")
    return _examples(valid), _examples(invalid)


def _examples(text: str) -> dict[str, str]:
    blocks = [block.splitlines() for block in re.split(r"\n> #+ ", text)[1:]]
    return {
        lines[0]: next(line.removeprefix("> ").strip() for line in lines[1:] if line.strip("> ")) for lines in blocks
    }


def test_all_valid_invoices_decode(examples: tuple[dict[str, str], dict[str, str]]) -> None:
    valid, _ = examples
    assert len(valid) == 16
    for title, text in valid.items():
        request = decode(text)
        assert (request.payment_secret, request.create_time_s) == ("11" * 32, request.create_time_s)
        assert request.payee_pubkey == PAYEE or "high-S" in title, title
        assert request.payment_hash == HASH or "list of items" in title, title


def test_what_the_valid_invoices_say(examples: tuple[dict[str, str], dict[str, str]]) -> None:
    requests = {title: decode(text) for title, text in examples[0].items()}

    def one(part: str) -> PaymentRequest:
        return next(request for title, request in requests.items() if part in title)

    donation = one("donation of any amount")
    assert (donation.amount_msat, donation.description) == (None, "Please consider supporting this project")
    assert (donation.expiry_s, donation.min_final_cltv_expiry_delta) == (3_600, 18)
    coffee = one("cup of coffee")
    assert (coffee.amount_msat, coffee.expiry_s, coffee.description) == (250_000_000, 60, "1 cup coffee")
    assert one("nonsense").description == "ナンセンス 1杯"
    testnet = one("on testnet")
    assert (testnet.currency, testnet.fallback_addresses[0].version) == ("tb", 17)
    assert testnet.description_hash == "3925b6f67e2c340036ed12093dd44e0368df1b6ea26c53dbe4811f58fd5db8c1"
    routed = one("extra routing")
    assert [(hop.short_channel_id, hop.fee_base_msat, hop.fee_proportional_millionths, hop.cltv_expiry_delta)
            for hop in routed.route_hints[0]] == [(0x0102030405060708, 1, 20, 3), (0x030405060708090A, 2, 30, 4)]  # fmt: skip
    assert [one(kind).fallback_addresses[0].version for kind in ("P2SH", "P2WPKH", "P2WSH", "P2TR")] == [18, 0, 0, 1]
    assert one("in pico-BTC").amount_msat == 967_878_534
    assert one("features 8, 14 and 99").feature_bits == (8, 14, 99)
    assert one("payment metadata").metadata == bytes.fromhex("01fafaf0")


def test_valid_invoices_survive_encoding(examples: tuple[dict[str, str], dict[str, str]]) -> None:
    key = NodeKey(SECRET)
    texts = [text for title, text in examples[0].items() if "high-S" not in title]
    for text in texts:
        request = decode(text)
        assert decode(encode(request, key)) == request
    same = [text for text in texts if encode(decode(text), key) == text]
    assert len(same) >= 6, "signatures are deterministic: examples with our order of fields come out byte for byte"


def test_all_invalid_invoices_are_refused_with_their_cause(examples: tuple[dict[str, str], dict[str, str]]) -> None:
    _, invalid = examples
    assert len(invalid) == 10
    for title, text in invalid.items():
        cause = next(cause for part, cause in CAUSES.items() if part in title)
        with pytest.raises(Bolt11Error, match=re.escape(cause)):
            decode(text)
