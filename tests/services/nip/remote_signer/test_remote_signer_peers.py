"""Real clients sign through the bunker over a real relay: nostr-tools' BunkerSigner and nostr-sdk's NostrConnect."""

from __future__ import annotations

import json

import nostr_sdk
import pytest

from nipmesh.nip.v1 import remote_signer_pb2 as words
from nipmesh.nip.v1 import remote_signer_service_pb2 as pb
from support.bunker import request_id
from support.signer_owner import Owner, allow, ask
from support.signer_peers import nostr_connect, nostr_tools

EVERYTHING = [allow(method) for method in words.RemoteSignerMethod.values() if method]


async def test_nostr_tools_signs_with_a_bunker_uri(owner: Owner) -> None:
    made = await owner.connection(*EVERYTHING)
    async with nostr_tools("bunker", made.bunker_uri) as peer:
        done = await peer.message()
    _check(owner, done)


async def test_nostr_tools_offers_and_is_accepted(owner: Owner) -> None:
    async with nostr_tools("offer", owner.relay) as peer:
        uri = (await peer.message())["uri"]
        request = pb.AcceptNostrConnectRequest(
            request_id=request_id(), key_id=owner.key_id, nostrconnect_uri=uri, permissions=EVERYTHING
        )
        made = await owner.signer.AcceptNostrConnect(request, metadata=owner.metadata)
        assert made.connection.client.display_name == "Peer"
        _check(owner, await peer.message())


async def test_nostr_tools_is_sent_to_its_user(owner: Owner) -> None:
    made = await owner.connection(*EVERYTHING[1:], ask(kind=1))
    async with nostr_tools("bunker", made.bunker_uri) as peer:
        url = (await peer.message())["auth"]
        request = pb.ResolveRequestRequest(request_id=request_id(), approval_id=url.rpartition("=")[2], allow_once=True)
        await owner.signer.ResolveRequest(request, metadata=owner.metadata)
        done = await peer.message()
    assert done["event"]["pubkey"] == owner.key_pubkey


def _check(owner: Owner, done: dict[str, object]) -> None:
    assert done["pubkey"] == owner.key_pubkey
    assert done["verified"]
    assert done["decrypted"] == "for a friend"
    assert done["refused"] == "this is not permitted"
    assert nostr_sdk.Event.from_json(json.dumps(done["event"])).verify()


async def test_nostr_sdk_signs(owner: Owner) -> None:
    made = await owner.connection(*EVERYTHING)
    client = nostr_connect(made.bunker_uri)
    public_key = await client.get_public_key_async()
    assert public_key.to_hex() == owner.key_pubkey
    unsigned = nostr_sdk.EventBuilder(nostr_sdk.Kind(1), "from nostr-sdk").finalize_unsigned(public_key)
    signed = await client.sign_event_async(unsigned)
    assert signed.verify()
    assert signed.author().to_hex() == owner.key_pubkey
    friend = nostr_sdk.Keys.generate().public_key()
    payload = await client.nip44_encrypt_async(friend, "for a friend")
    assert await client.nip44_decrypt_async(friend, payload) == "for a friend"
    refused = nostr_sdk.EventBuilder(nostr_sdk.Kind(22242), "").finalize_unsigned(public_key)
    with pytest.raises(nostr_sdk.NostrSdkError, match="not permitted"):
        await client.sign_event_async(refused)
