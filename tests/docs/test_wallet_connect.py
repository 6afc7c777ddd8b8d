"""docs/nips/47.md: its manifest is sound and says what it seems to; its other examples run in tests/services/wallet."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import yaml

from services.nip.settings import NipSettings
from services.nip.wallet.serving import relays_of
from support.checkout import blocks, copy_checkout
from support.mesh import REPOSITORY
from support.orders import with_piece

DOCUMENT = "docs/nips/47.md"
EXAMPLES = ["connect", "alby", "nostr-sdk"]
"""See test_wallet_documentation.py."""


def test_the_manifest_shown_is_sound(tmp_path: Path) -> None:
    copy_checkout(tmp_path)
    (piece,) = blocks(DOCUMENT, "yaml")
    manifest = with_piece(piece, (tmp_path / "mesh.yaml").read_text())
    (tmp_path / "wallets.yaml").write_text(manifest)
    command = [".venv/bin/nipmesh", "-f", "wallets.yaml", "check", "--no-envoy"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 errors, 0 warnings" in done.stdout + done.stderr
    environment = yaml.safe_load(manifest)["services"]["nip"]["env"]
    settings = NipSettings.model_construct(wallet_relays=environment["NIPMESH_WALLET_RELAYS"])
    assert relays_of(settings) == ("wss://relay.example.com", "wss://nostr.example.org")


def test_each_block_of_the_page_is_tried() -> None:
    page = (REPOSITORY / DOCUMENT).read_text()
    assert re.findall(r"^```(\w+)", page, re.MULTILINE) == ["yaml", "python", "javascript", "python"]
    assert re.findall(r"^(?:#|//) example: (\S+)$", page, re.MULTILINE) == EXAMPLES
