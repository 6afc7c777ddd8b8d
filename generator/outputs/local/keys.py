"""The token issuer's public keys, for the gateway."""

from __future__ import annotations

from pathlib import Path

from generator.model import Mesh
from generator.outputs.local.paths import StatePaths
from generator.pki import TokenKey


def key_set(mesh: Mesh, paths: StatePaths, manifest_directory: Path) -> str | None:
    """Give our own key's public half, made on first use, or the foreign issuer's file. Raises OSError and ValueError."""
    authentication = None if mesh.gateway is None else mesh.gateway.authentication
    if authentication is None:
        return None
    if authentication.jwks_file is not None:
        return (manifest_directory / authentication.jwks_file).read_text(encoding="utf-8")
    return TokenKey.open(paths.token_key).key_set()
