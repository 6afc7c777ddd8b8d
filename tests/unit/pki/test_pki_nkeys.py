"""Keys of NATS users: the known form, files, and that nothing secret is shown."""

import base64
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from generator.pki import DamagedFileError, UserKey

SEED, PUBLIC = (
    "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY",
    "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4",
)
"""Of the documentation of NATS: https://docs.nats.io/running-a-nats-service/configuration/securing_nats/auth_intro/nkey_auth"""


def test_a_known_seed_gives_its_public_key(tmp_path: Path) -> None:
    path = tmp_path / "user.nk"
    path.write_text(SEED + "\n")
    key = UserKey.load(path)
    assert key.public == PUBLIC
    assert key.seed.reveal().decode() == SEED


def test_a_key_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "user.nk"
    key = UserKey.open(path)
    assert UserKey.open(path).public == key.public
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    key.private_key.public_key().verify(key.sign(b"nonce"), b"nonce")


def test_printing_shows_the_public_half_only() -> None:
    key = UserKey(private_key=Ed25519PrivateKey.generate())
    assert key.seed.reveal().decode() not in repr(key) + repr(key.seed)
    assert key.public in repr(key)


@pytest.mark.parametrize(
    "text", ["", "SU", SEED[:-1], SEED[:-1] + "A", "!" * 58, PUBLIC, base64.b32encode(b"x" * 36).decode()]
)
def test_what_is_no_seed_is_refused_and_not_shown(tmp_path: Path, text: str) -> None:
    path = tmp_path / "user.nk"
    path.write_text(text)
    with pytest.raises(DamagedFileError) as caught:
        UserKey.load(path)
    assert not text or text not in str(caught.value)


@given(st.binary(min_size=32, max_size=32))
def test_every_key_survives_its_file(raw: bytes) -> None:
    key = UserKey(private_key=Ed25519PrivateKey.from_private_bytes(raw))
    assert len(key.seed.reveal()) == 58
    assert len(key.public) == 56
    assert key.seed.reveal().startswith(b"SU")
    assert key.public.startswith("U")
