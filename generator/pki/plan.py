"""Whose certificates one machine keeps: a file that says it without the manifest, and what is due of it."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generator.pki.authority import LEAF_LIFETIME_MAX, DamagedFileError


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One workload's certificate."""

    workload: str
    identity: str
    """Its SPIFFE id."""
    hosts: tuple[str, ...] = ()
    """Names of a server whose clients know no SPIFFE ids."""
    user: str
    """Whose its files are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificatePlan:
    """All of one machine."""

    trust_domain: str
    lifetime_ms: int
    wanted: tuple[Wanted, ...]

    @property
    def lifetime(self) -> dt.timedelta:
        """How long each certificate is valid."""
        return min(dt.timedelta(milliseconds=self.lifetime_ms), LEAF_LIFETIME_MAX)

    def of(self, workload: str) -> Wanted:
        """One workload's; KeyError when this machine does not keep it."""
        for wanted in self.wanted:
            if wanted.workload == workload:
                return wanted
        raise KeyError(workload)

    def to_json(self) -> bytes:
        """Write the file."""
        listed = {
            each.workload: {"identity": each.identity, "hosts": list(each.hosts), "user": each.user}
            for each in self.wanted
        }
        document = {"trust_domain": self.trust_domain, "lifetime_ms": self.lifetime_ms, "workloads": listed}
        return (json.dumps(document, indent=2) + "\n").encode()

    @classmethod
    def load(cls, path: Path) -> CertificatePlan:
        """Read the file. Raises OSError, and DamagedFileError when it is none of ours."""
        try:
            return cls._of(json.loads(path.read_bytes()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            mend = "render it again: `nipmesh render --target systemd`"
            raise DamagedFileError(f"{path} is no plan of certificates; {mend}") from error

    @classmethod
    def _of(cls, document: dict[str, Any]) -> CertificatePlan:
        wanted = tuple(
            Wanted(
                workload=str(name),
                identity=str(each["identity"]),
                hosts=tuple(map(str, each["hosts"])),
                user=str(each["user"]),
            )
            for name, each in document["workloads"].items()
        )
        domain = str(document["trust_domain"])
        if not all(each.identity.startswith(f"spiffe://{domain}/") for each in wanted):
            raise ValueError("an identity of another trust domain")
        return cls(trust_domain=domain, lifetime_ms=int(document["lifetime_ms"]), wanted=wanted)
