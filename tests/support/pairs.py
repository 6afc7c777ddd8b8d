"""Certificates and keys in files, for what takes the names of such files."""

from __future__ import annotations

from pathlib import Path

from generator.outputs.files.validation import throwaway_leaf


def write_pair(folder: Path, name: str) -> None:
    """Write NAME.crt, NAME.key and NAME.ca; nobody trusts them."""
    leaf = throwaway_leaf()
    (folder / f"{name}.crt").write_bytes(leaf.certificate_pem)
    (folder / f"{name}.ca").write_bytes(leaf.authorities_pem)
    (folder / f"{name}.key").touch(mode=0o600)
    (folder / f"{name}.key").write_bytes(leaf.private_key_pem.reveal())
