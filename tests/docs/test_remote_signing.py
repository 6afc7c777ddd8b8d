"""docs/nips/46.md: its commands on a mesh with a relay of its own, and both apps that it names, each with a URI that they give."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nostr_sdk
import pytest

from support.checkout import DEFAULT_GATEWAY, blocks, copy_checkout, environment, run_script
from support.nostr_relay import running_relay
from support.orders import with_piece
from support.signer_peers import PEER, nostr_connect

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(240)]

DOCUMENT = "docs/nips/46.md"
RELAY = "wss://relay.example.com"
REQUEST_ID = "6f1c0e2e-1111-4222-8333-444455556666"
ON_PATH = 'export PATH="$PWD/.venv/bin:$PATH"\n'
NEEDED = """
TOKEN=$(nipmesh token)
KEY_ID=$(grpcurl -plaintext -H "authorization: Bearer $TOKEN" -d '{"request_id": "6f1c0e2e-1111-4222-8333-444455556666", "fresh": true}' \
  127.0.0.1:8080 nipmesh.nip.v1.NipService/CreateKey | sed -n 's/.*"keyId": "\\([^"]*\\)".*/\\1/p')
"""
"""What the page begins with: a token, and a key of its owner's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signing:
    """A mesh that runs in a copy of the repository."""

    folder: Path
    gateway: str
    relay: str

    def run(self, script: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Commands of the page, at this mesh's gateway and relay."""
        here = script.replace(DEFAULT_GATEWAY, self.gateway).replace(RELAY, self.relay)
        return run_script(ON_PATH + here, self.folder, 90, **more)

    def connection(self) -> str:
        """The URI that the page's first block gives; a new one each time."""
        (block,) = blocks(DOCUMENT, "sh")
        done = self.run((NEEDED + block).replace(REQUEST_ID, str(uuid.uuid4())))
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return str(json.loads(done.stdout)["bunkerUri"])


@pytest.fixture(scope="module")
def signing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signing]:
    """The repository's mesh with a relay that the operator named, down afterwards."""
    if shutil.which("grpcurl", path=environment()["PATH"]) is None:
        pytest.skip("grpcurl is not installed (go install github.com/fullstorydev/grpcurl/cmd/grpcurl@latest)")
    folder = tmp_path_factory.mktemp("signing")
    gateway, manifest = copy_checkout(folder), folder / "mesh.yaml"
    with running_relay() as relay:
        piece = f'services: {{nip: {{env: {{NIPMESH_SIGNER_RELAYS: "{relay.url}"}}}}}}'
        manifest.write_text(with_piece(piece, manifest.read_text()))
        running = Signing(folder=folder, gateway=gateway, relay=relay.url)
        try:
            up = running.run("nipmesh up --detach")
            assert up.returncode == 0, up.stdout + up.stderr
            yield running
        finally:
            down = [sys.executable, "-m", "generator", "down"]
            subprocess.run(down, cwd=folder, capture_output=True, timeout=90, check=False)


async def test_the_first_block_gives_a_uri_with_which_nostr_sdk_signs(signing: Signing) -> None:
    app = nostr_connect(signing.connection())
    pubkey = await app.get_public_key_async()
    unsigned = nostr_sdk.EventBuilder(nostr_sdk.Kind(1), "from afar").finalize_unsigned(pubkey)
    signed = await app.sign_event_async(unsigned)
    assert signed.verify()
    assert signed.author().to_hex() == pubkey.to_hex()
    other = nostr_sdk.EventBuilder(nostr_sdk.Kind(7), "+").finalize_unsigned(pubkey)
    with pytest.raises(nostr_sdk.NostrSdkError, match="not permitted"):
        await app.sign_event_async(other)


def test_the_app_of_the_page_signs_with_such_a_uri(signing: Signing) -> None:
    (block,) = blocks(DOCUMENT, "sh", "app")
    install, *rest = block.strip().splitlines()
    assert install.startswith("npm ci --prefix tests/peers/signer")
    modules = PEER / "node_modules"
    if not modules.exists() or shutil.which("node") is None:
        pytest.skip(f"needs Node.js, and what the page says first: {install}")
    (signing.folder / "tests/peers/signer/node_modules").symlink_to(modules)
    done = signing.run("\n".join(rest), URI=signing.connection())
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    said = json.loads(done.stdout.strip().splitlines()[-1])
    assert said["verified"]
    assert said["event"]["pubkey"] == said["pubkey"]
    assert said["refused"] == "this is not permitted"
