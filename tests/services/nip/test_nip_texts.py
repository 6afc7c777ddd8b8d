"""The methods for texts and for the life of keys on a Unix socket: what clients see, who gets in, what is refused and how."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc
import nostr_sdk
import pytest
from google.protobuf.duration_pb2 import Duration

from nipmesh.nip.v1 import nip_pb2
from nipmesh.nip.v1 import nip_service_pb2 as pb
from services.chassis.errors import PUSH_BACK_KEY, PUSH_BACK_NEVER, reason_of, retry_delay_ms_of
from services.chassis.secret import SecretBytes
from services.chassis.testing import as_service, as_user
from services.nip.domain import nip19, nip44, nip49
from support.nostr import User

ALICE, BOB = "aa" * 32, "bb" * 32
PASSWORD = "open sesame"
Serve = Callable[[str], AbstractAsyncContextManager[Any]]
Entity = pb.Nip19Entity


def _id() -> str:
    return str(uuid.uuid4())


async def _create(service: Any, owner: str = ALICE, **source: Any) -> nip_pb2.Key:
    request = pb.CreateKeyRequest(request_id=_id(), **(source or {"fresh": True}))
    key: nip_pb2.Key = (await service.nip.CreateKey(request, metadata=as_user(owner))).key
    return key


async def _call(service: Any, method: str, owner: str = ALICE, **fields: Any) -> Any:
    request_type = getattr(pb, f"{method}Request")
    if "request_id" in request_type.DESCRIPTOR.fields_by_name:
        fields.setdefault("request_id", _id())
    return await getattr(service.nip, method)(request_type(**fields), metadata=as_user(owner))


async def _refused(call: Any) -> tuple[grpc.StatusCode, str | None]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value.code(), reason_of(refused.value)


# Encrypted texts


@pytest.mark.parametrize("cipher", [nip_pb2.CIPHER_NIP44, nip_pb2.CIPHER_NIP04])
async def test_nostr_sdk_reads_what_is_encrypted_and_the_other_way_round(service: Any, cipher: Any) -> None:
    key, peer = await _create(service), nostr_sdk.Keys.generate()
    ours = nostr_sdk.PublicKey.parse(key.pubkey)
    secret, npub = peer.secret_key(), peer.public_key().to_bech32()
    sealed = await _call(service, "Encrypt", key_id=key.key_id, peer=npub, plaintext="héllo", cipher=cipher)
    if cipher == nip_pb2.CIPHER_NIP44:
        assert nostr_sdk.nip44_decrypt(secret, ours, sealed.payload) == "héllo"
        payload = nostr_sdk.nip44_encrypt(secret, ours, "grüße", nostr_sdk.Nip44Version.V2)
    else:
        assert nostr_sdk.nip04_decrypt(secret, ours, sealed.payload) == "héllo"
        payload = nostr_sdk.nip04_encrypt(secret, ours, "grüße")
    for name in (peer.public_key().to_hex(), npub, "nostr:" + npub, peer.public_key().to_nostr_uri()):
        opened = await _call(service, "Decrypt", key_id=key.key_id, peer=name, payload=payload, cipher=cipher)
        assert opened.plaintext == "grüße"


async def test_the_longest_text_goes_through(service: Any) -> None:
    key, text = await _create(service), "a" * 1_048_576
    fields: dict[str, Any] = {"key_id": key.key_id, "peer": User().pubkey, "cipher": nip_pb2.CIPHER_NIP44}
    payload = (await _call(service, "Encrypt", plaintext=text, **fields)).payload
    assert (await _call(service, "Decrypt", payload=payload, **fields)).plaintext == text
    assert await _refused(_call(service, "Encrypt", plaintext=text + "a", **fields)) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "REQUEST_INVALID",
    )


async def test_what_does_not_open_is_told_in_one_way(service: Any) -> None:
    key, peer = await _create(service), User().pubkey
    fields: dict[str, Any] = {"key_id": key.key_id, "peer": peer}
    sealed = (await _call(service, "Encrypt", plaintext="hello", cipher=nip_pb2.CIPHER_NIP44, **fields)).payload
    old = (await _call(service, "Encrypt", plaintext="hello", cipher=nip_pb2.CIPHER_NIP04, **fields)).payload
    texts = set()
    for payload, cipher in (
        (sealed[:-8] + "AAAAAAA=", nip_pb2.CIPHER_NIP44),
        (sealed[:100], nip_pb2.CIPHER_NIP44),
        (old, nip_pb2.CIPHER_NIP44),
        ("", nip_pb2.CIPHER_NIP44),
        (old[:-4], nip_pb2.CIPHER_NIP04),
        (sealed, nip_pb2.CIPHER_NIP04),
        ("", nip_pb2.CIPHER_NIP04),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await _call(service, "Decrypt", payload=payload, cipher=cipher, **fields)
        texts.add((refused.value.code(), reason_of(refused.value), refused.value.details()))
    assert {(code, reason) for code, reason, _ in texts} == {(grpc.StatusCode.INVALID_ARGUMENT, "DECRYPTION_FAILED")}
    assert len(texts) == 1
    later = _call(service, "Decrypt", payload="#" + sealed, cipher=nip_pb2.CIPHER_NIP44, **fields)
    assert (await _refused(later))[1] == "PAYLOAD_VERSION_UNSUPPORTED"


NSEC = nip19.nsec(SecretBytes(b"\x07" * 32))


@pytest.mark.parametrize(
    "peer", ["00" * 32, "ff" * 32, "x", NSEC, "nostr:x", nip19.encode(nip19.Note(event_id="aa" * 32))]
)
async def test_a_peer_is_a_public_key(service: Any, peer: str) -> None:
    key = await _create(service)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await _call(service, "Encrypt", key_id=key.key_id, peer=peer, plaintext="x", cipher=nip_pb2.CIPHER_NIP44)
    assert (refused.value.code(), reason_of(refused.value)) == (grpc.StatusCode.INVALID_ARGUMENT, "PEER_INVALID")
    assert NSEC not in str(refused.value)


@pytest.mark.parametrize(
    "fields", [{"plaintext": "", "cipher": nip_pb2.CIPHER_NIP44}, {"plaintext": "x"}, {"plaintext": "x", "cipher": 7}]
)
async def test_the_rules_of_encrypting(service: Any, fields: dict[str, Any]) -> None:
    call = _call(service, "Encrypt", key_id=_id(), peer=User().pubkey, **fields)
    assert await _refused(call) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_INVALID")


# NIP-19


@pytest.mark.parametrize(
    ("entity", "prefix"),
    [
        (Entity(public_key=Entity.PublicKey(pubkey=ALICE)), "npub1"),
        (Entity(note=Entity.Note(event_id=BOB)), "note1"),
        (Entity(profile=Entity.Profile(pubkey=ALICE, relays=["wss://a.example"])), "nprofile1"),
        (Entity(event=Entity.Event(event_id=BOB, author=ALICE, kind=0)), "nevent1"),
        (Entity(event=Entity.Event(event_id=BOB)), "nevent1"),
        (Entity(address=Entity.Address(identifier="ä", author=ALICE, kind=30_023)), "naddr1"),
    ],
)
async def test_what_is_written_is_read(service: Any, entity: pb.Nip19Entity, prefix: str) -> None:
    written = await _call(service, "EncodeNip19", entity=entity)
    assert written.text.startswith(prefix)
    assert written.uri == "nostr:" + written.text
    for text in (written.text, written.uri, written.text.upper()):
        assert (await _call(service, "DecodeNip19", text=text)).entity == entity


async def test_of_a_private_key_nothing_is_told_but_that_it_is_one(service: Any) -> None:
    answer = await _call(service, "DecodeNip19", text=NSEC)
    assert answer == pb.DecodeNip19Response(entity=Entity(private_key=Entity.PrivateKey()))
    for text in ("nostr:" + NSEC, NSEC[:-1] + ("q" if NSEC[-1] != "q" else "p")):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await _call(service, "DecodeNip19", text=text)
        assert reason_of(refused.value) == "NIP19_INVALID"
        assert text[10:] not in str(refused.value)
    for entity in (Entity(private_key=Entity.PrivateKey()), Entity(relay=Entity.RelayAddress(url="wss://a.example"))):
        assert (await _refused(_call(service, "EncodeNip19", entity=entity)))[1] == "NIP19_INVALID"


# The life of a key


async def test_a_life_from_an_ncryptsec_to_deletion(service: Any) -> None:
    user = User()
    secret = nostr_sdk.SecretKey.parse(user.private_key.secret.hex())
    given = nostr_sdk.EncryptedSecretKey(secret, PASSWORD, 4, nostr_sdk.KeySecurity.MEDIUM).to_bech32()
    wrong = pb.EncryptedKey(ncryptsec=given, password="open barley")
    assert await _refused(_create(service, encrypted=wrong)) == (grpc.StatusCode.PERMISSION_DENIED, "PASSWORD_WRONG")
    key = await _create(service, encrypted=pb.EncryptedKey(ncryptsec=given, password=PASSWORD))
    assert (key.pubkey, key.security, key.state) == (user.pubkey, nip_pb2.KEY_SECURITY_SAFE, nip_pb2.Key.STATE_ACTIVE)
    locked = (await _call(service, "LockKey", key_id=key.key_id, password=PASSWORD)).key
    assert (locked.state, locked.password_protected) == (nip_pb2.Key.STATE_LOCKED, True)
    sign: dict[str, Any] = {"key_id": key.key_id, "template": nip_pb2.EventTemplate(kind=1)}
    assert await _refused(_call(service, "SignEvent", **sign)) == (grpc.StatusCode.FAILED_PRECONDITION, "KEY_LOCKED")
    unlock: dict[str, Any] = {"key_id": key.key_id, "password": PASSWORD}
    opened = (await _call(service, "UnlockKey", **unlock, ttl=Duration(seconds=60))).key
    assert opened.state == nip_pb2.Key.STATE_UNLOCKED
    assert 50 < opened.unlock_expire_time.seconds - time.time() <= 61
    assert (await _call(service, "SignEvent", **sign)).event.pubkey == key.pubkey
    assert (await _call(service, "GetKey", key_id=key.key_id)).key == opened
    exported = await _call(service, "ExportKey", **unlock)
    assert nostr_sdk.EncryptedSecretKey.from_bech32(exported.ncryptsec).decrypt(PASSWORD).to_hex() == secret.to_hex()
    free = (await _call(service, "UnlockKey", **unlock, for_good=True)).key
    assert (free.state, free.password_protected) == (nip_pb2.Key.STATE_ACTIVE, False)
    off = (await _call(service, "DisableKey", key_id=key.key_id)).key
    assert off.state == nip_pb2.Key.STATE_DISABLED
    assert (await _refused(_call(service, "SignEvent", **sign)))[1] == "KEY_NOT_ACTIVE"
    assert (await _call(service, "EnableKey", key_id=key.key_id)).key.state == nip_pb2.Key.STATE_ACTIVE
    gone = (await _call(service, "DeleteKey", key_id=key.key_id)).key
    assert (gone.state, gone.HasField("delete_time")) == (nip_pb2.Key.STATE_DELETED, True)
    assert await _refused(_call(service, "SignEvent", **sign)) == (grpc.StatusCode.NOT_FOUND, "KEY_NOT_FOUND")
    assert (await _call(service, "GetKey", key_id=key.key_id)).key == gone
    assert list((await _call(service, "ListKeys")).keys) == []


async def test_wrong_passwords_are_told_when_to_try_again_and_no_sidecar_repeats_them(serve: Serve) -> None:
    async with serve("r0") as first, serve("r1") as second:
        key = await _create(first)
        await _call(first, "LockKey", key_id=key.key_id, password=PASSWORD)
        wrong: dict[str, Any] = {"key_id": key.key_id, "password": "x", "for_good": True}
        for number in range(5):
            assert (await _refused(_call((first, second)[number % 2], "UnlockKey", **wrong)))[1] == "PASSWORD_WRONG"
    async with serve("r0") as restarted:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await _call(restarted, "UnlockKey", **{**wrong, "password": PASSWORD})
        error = refused.value
        assert (error.code(), reason_of(error)) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "PASSWORD_ATTEMPTS_EXCEEDED",
        )
        assert 0 < (retry_delay_ms_of(error) or 0) <= 30_000
        assert (PUSH_BACK_KEY, PUSH_BACK_NEVER) in tuple(error.trailing_metadata() or ())


async def test_a_costly_ncryptsec_is_refused_at_once(service: Any) -> None:
    data = nip49.encrypt(SecretBytes(b"\x01" * 32), SecretBytes(b"x"), nip49.KeySecurity.SAFE, log_n=1)
    costly = nip49.text_of(data[:1] + b"\x16" + data[2:])
    before = time.process_time()
    call = _create(service, encrypted=pb.EncryptedKey(ncryptsec=costly, password="x"))
    assert await _refused(call) == (grpc.StatusCode.INVALID_ARGUMENT, "NCRYPTSEC_TOO_COSTLY")
    assert time.process_time() - before < 0.5


LIFE = ["LockKey", "UnlockKey", "DisableKey", "EnableKey", "DeleteKey", "ExportKey", "Encrypt", "Decrypt", "GetRelays"]
ARGUMENTS: dict[str, dict[str, Any]] = {
    "UnlockKey": {"password": PASSWORD, "for_good": True},
    "ExportKey": {"password": PASSWORD},
    "Encrypt": {"peer": ALICE, "plaintext": "x", "cipher": nip_pb2.CIPHER_NIP44},
    "Decrypt": {"peer": ALICE, "payload": "x", "cipher": nip_pb2.CIPHER_NIP44},
}


@pytest.mark.parametrize("method", [*LIFE, "SetRelays"])
async def test_anothers_key_is_a_missing_key(service: Any, method: str) -> None:
    key = await _create(service)
    for key_id in (key.key_id, _id()):
        call = _call(service, method, BOB, key_id=key_id, **ARGUMENTS.get(method, {}))
        assert await _refused(call) == (grpc.StatusCode.NOT_FOUND, "KEY_NOT_FOUND")
    assert (await _call(service, "GetKey", key_id=key.key_id)).key == key


async def test_payments_receipt_key_cannot_be_ended_by_anybody(service: Any) -> None:
    """Not by payment itself, and not by a user: no user is the owner."""
    request = pb.CreateKeyRequest(request_id=_id(), fresh=True)
    key = (await service.nip.CreateKey(request, metadata=as_service("payment"))).key
    for method in [*LIFE, "SetRelays"]:
        fields = {"key_id": key.key_id, **ARGUMENTS.get(method, {})}
        request_type = getattr(pb, f"{method}Request")
        if "request_id" in request_type.DESCRIPTOR.fields_by_name:
            fields["request_id"] = _id()
        call = getattr(service.nip, method)(request_type(**fields), metadata=as_service("payment"))
        assert await _refused(call) == (grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_ALLOWED")
        assert (await _refused(_call(service, method, **fields)))[1] == "KEY_NOT_FOUND"
    assert key.state == nip_pb2.Key.STATE_ACTIVE


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("LockKey", {"password": "short"}),
        ("LockKey", {"password": "x" * 1_025}),
        ("UnlockKey", {"password": PASSWORD}),
        ("UnlockKey", {"password": "", "for_good": True}),
        ("UnlockKey", {"password": PASSWORD, "for_good": False}),
        ("UnlockKey", {"password": PASSWORD, "ttl": Duration()}),
        ("UnlockKey", {"password": PASSWORD, "ttl": Duration(seconds=86_401)}),
        ("ExportKey", {"password": PASSWORD, "log_n": 15}),
        ("ExportKey", {"password": PASSWORD, "log_n": 19}),
        ("ExportKey", {"password": "1234567"}),
        ("SetRelays", {"relays": [nip_pb2.Relay(url="wss://a.example")] * 33}),
    ],
)
async def test_the_rules_of_passwords_and_times(service: Any, method: str, fields: dict[str, Any]) -> None:
    assert await _refused(_call(service, method, key_id=_id(), **fields)) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "REQUEST_INVALID",
    )


# Relays (NIP-07's getRelays)


async def test_relays_of_a_key(service: Any) -> None:
    key = await _create(service)
    wanted = [nip_pb2.Relay(url="wss://A.example:443/"), nip_pb2.Relay(url="ws://b.example", write=True)]
    stored = [nip_pb2.Relay(url="wss://a.example", read=True, write=True), wanted[1]]
    assert list((await _call(service, "SetRelays", key_id=key.key_id, relays=wanted)).relays) == stored
    assert list((await _call(service, "GetRelays", key_id=key.key_id)).relays) == stored
    for relays in ([nip_pb2.Relay(url="https://a.example")], [wanted[0], wanted[0]]):
        assert (await _refused(_call(service, "SetRelays", key_id=key.key_id, relays=relays)))[1] == "RELAY_INVALID"
    await _call(service, "DeleteKey", key_id=key.key_id)
    assert (await _refused(_call(service, "GetRelays", key_id=key.key_id)))[1] == "KEY_NOT_FOUND"


def test_the_limits_of_the_protos_are_those_of_the_domain() -> None:
    """They stand in two places: the proto's comments are what clients read."""
    assert nip44.PAYLOAD_CHARACTERS_MAX <= 1_500_000
    assert len(NSEC) == nip19.KEY_CHARACTERS_MAX
    assert len("ncryptsec1") + 152 == nip49.CHARACTERS
    assert (nip49.LOG_N_MIN, nip49.LOG_N_MAX) == (16, 18)
