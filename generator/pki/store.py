"""Where a sidecar reads its certificate: `<folder>/..data/{tls.crt,tls.key,ca.crt}`.

`..data` is a symbolic link to a folder that is never changed once it is there; renewal makes a new folder and swaps the
link in one step, so that Envoy never reads a certificate beside another's key. The folder before the current one stays
until the next renewal: Envoy may be reading through the old link in the moment of the swap.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from cryptography import x509

from generator.pki.leaf import Leaf
from generator.pki.private import private_directory, write_private

DATA_LINK = "..data"
CERTIFICATE = "tls.crt"
PRIVATE_KEY = "tls.key"
AUTHORITIES = "ca.crt"


def publish_leaf(directory: Path, leaf: Leaf, owner: tuple[int, int] | None = None) -> None:
    """Make `leaf` the current one of the workload whose folder this is. `owner`: the ids to whom it is given. Raises OSError."""
    private_directory(directory)
    before = _current_name(directory)
    fresh = Path(tempfile.mkdtemp(dir=directory, prefix=f"..{leaf.issued:%Y_%m_%d_%H_%M_%S}."))
    write_private(fresh / CERTIFICATE, leaf.certificate_pem)
    write_private(fresh / PRIVATE_KEY, leaf.private_key_pem)
    write_private(fresh / AUTHORITIES, leaf.authorities_pem)
    if owner is not None:
        for path in (*fresh.iterdir(), fresh, directory):
            os.chown(path, *owner)
    link = directory / "..data.new"
    link.unlink(missing_ok=True)
    link.symlink_to(fresh.name)
    link.replace(directory / DATA_LINK)
    _remove_others(directory, keep={fresh.name, before})


def installed_leaf(directory: Path) -> x509.Certificate | None:
    """Read the workload's current certificate; None before the first. Raises ValueError when the file is damaged."""
    path = directory / DATA_LINK / CERTIFICATE
    if not path.exists():
        return None
    return x509.load_pem_x509_certificate(path.read_bytes())


def _current_name(directory: Path) -> str | None:
    link = directory / DATA_LINK
    return link.readlink().name if link.is_symlink() else None


def _remove_others(directory: Path, *, keep: set[str | None]) -> None:
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink() and path.name.startswith("..") and path.name not in keep:
            shutil.rmtree(path)
