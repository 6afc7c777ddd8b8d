"""The cache of opened keys: its bound, its order and its wiping."""

from __future__ import annotations

import pytest

from services.chassis.secret import SecretBytes
from services.nip.domain.signers import SignerCache
from services.nostr.bip340 import Signer, SigningFaultError


def _signer(number: int) -> Signer:
    return Signer(SecretBytes(number.to_bytes(32, "big")))


def _is_wiped(signer: Signer) -> bool:
    try:
        signer.sign(bytes(32), bytes(32))
    except SigningFaultError:
        return True
    return False


def test_the_least_recently_used_goes_and_is_wiped() -> None:
    cache, signers = SignerCache(2), [_signer(number) for number in (1, 2, 3)]
    cache.put(("owner", "1"), signers[0])
    cache.put(("owner", "2"), signers[1])
    assert cache.get(("owner", "1")) is signers[0]
    cache.put(("owner", "3"), signers[2])
    assert (cache.get(("owner", "1")), cache.get(("owner", "2")), cache.get(("owner", "3"))) == (
        signers[0],
        None,
        signers[2],
    )
    assert [_is_wiped(signer) for signer in signers] == [False, True, False]
    assert len(cache) == 2


def test_a_replaced_signer_is_wiped_and_the_same_one_is_not() -> None:
    cache, first, second = SignerCache(2), _signer(1), _signer(1)
    cache.put(("owner", "1"), first)
    cache.put(("owner", "1"), first)
    assert not _is_wiped(first)
    cache.put(("owner", "1"), second)
    assert _is_wiped(first)
    assert not _is_wiped(second)


def test_clear_wipes_everything() -> None:
    cache, signers = SignerCache(4), [_signer(number) for number in (1, 2)]
    for number, signer in enumerate(signers):
        cache.put(("owner", str(number)), signer)
    cache.clear()
    assert len(cache) == 0
    assert all(_is_wiped(signer) for signer in signers)


def test_a_cache_needs_room_for_one() -> None:
    with pytest.raises(AssertionError):
        SignerCache(0)
