"""The bunker in a running mesh: its owner behind the gateway, its apps (nostr-tools, nostr-sdk) at a relay, a replica killed meanwhile."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import nostr_sdk
import pytest

from nipmesh.nip.v1 import nip_service_pb2 as nip_pb
from nipmesh.nip.v1 import nip_service_pb2_grpc as nip_grpc
from nipmesh.nip.v1 import remote_signer_pb2 as words
from nipmesh.nip.v1 import remote_signer_service_pb2 as pb
from nipmesh.nip.v1 import remote_signer_service_pb2_grpc as pb_grpc
from support.bunker import request_id
from support.mesh import RunningMesh
from support.nostr import User
from support.nostr_relay import NostrRelay, running_relay
from support.signer_owner import allow
from support.signer_peers import nostr_connect, nostr_tools

pytestmark = pytest.mark.mesh

MANIFEST = """
mesh: bunker
trust_domain: bunker.mesh
protos: [protos]
services:
  nip:
    run: python -m services.nip
    serves: [nipmesh.nip.v1.AuthService, nipmesh.nip.v1.NipService, nipmesh.nip.v1.RemoteSignerService]
    replicas: 2
    secrets:
      NIP_KEYSTORE_KEY_FILE: {generate: 32}
    env:
      NIPMESH_SIGNER_RELAYS: "@relay@"
gateway:
  listen: 127.0.0.1:8080
  authentication:
    issuer: nip
    public: [AuthService/Login]
  expose:
    nip: [AuthService/*, NipService/*, RemoteSignerService/*]
"""


@pytest.fixture(scope="module")
def relay() -> Iterator[NostrRelay]:
    with running_relay() as started:
        yield started


@pytest.fixture(scope="module")
def bunker_mesh(tmp_path_factory: pytest.TempPathFactory, relay: NostrRelay) -> Iterator[RunningMesh]:
    running = RunningMesh(tmp_path_factory.mktemp("bunker"), MANIFEST.replace("@relay@", relay.url))
    running.up()
    try:
        yield running
    finally:
        running.run("down")


async def test_apps_sign_through_the_mesh(bunker_mesh: RunningMesh) -> None:
    user = User()
    permissions = [allow(method) for method in words.RemoteSignerMethod.values() if method]
    async with bunker_mesh.channel() as channel:
        await user.login(channel, f"http://{bunker_mesh.gateway}")
        nip, signer = nip_grpc.NipServiceStub(channel), pb_grpc.RemoteSignerServiceStub(channel)
        key = (
            await nip.CreateKey(nip_pb.CreateKeyRequest(request_id=request_id(), fresh=True), metadata=user.metadata)
        ).key
        uris = []
        for _ in range(2):
            request = pb.CreateBunkerConnectionRequest(
                request_id=request_id(), key_id=key.key_id, permissions=permissions
            )
            uris.append((await signer.CreateBunkerConnection(request, metadata=user.metadata)).bunker_uri)
        async with nostr_tools("bunker", uris[0]) as peer:
            done = await peer.message()
        assert (done["pubkey"], done["verified"]) == (key.pubkey, True)
        client = nostr_connect(uris[1])
        public_key = await client.get_public_key_async()
        os.kill(bunker_mesh.replicas("nip")[0]["pid"], signal.SIGKILL)
        unsigned = nostr_sdk.EventBuilder(nostr_sdk.Kind(1), "by the other replica").finalize_unsigned(public_key)
        assert (await client.sign_event_async(unsigned)).verify()
        requests = await signer.ListSignerRequests(pb.ListSignerRequestsRequest(), metadata=user.metadata)
    methods = {one.method for one in requests.requests}
    assert {"connect", "get_public_key", "sign_event", "logout"} <= methods
