"""How a node of lnd is reached."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class LndSettings:
    """Where lnd's gRPC is served and what opens it. The files are read once, when the node is opened."""

    address: str
    """host:port of lnd's `rpclisten`. The host must be a name in the certificate: lnd adds those of `tlsextradomain`."""
    tls_cert: Path
    """lnd's own certificate, `tls.cert` in its folder; no other is trusted."""
    macaroon: Path
    """The permission, binary as lnd bakes it, mode 0600. Not admin.macaroon: see `services.lightning.lnd`."""
