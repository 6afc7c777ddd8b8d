"""Renewal without a runner: what is due of a plan, and one go at it. Whoever wants it regularly asks a timer."""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from generator.pki.authority import BACKDATE
from generator.pki.plan import CertificatePlan, Wanted
from generator.pki.private import write_private
from generator.pki.request import Keys
from generator.pki.store import AUTHORITIES, installed_leaf, publish_leaf

PUBLIC_MODE = 0o644
PUBLIC_DIRECTORY_MODE = 0o755
LOCK = ".lock"
Sign = Callable[[bytes], bytes]
"""From a request to its answer: here, or on another machine."""
OwnerOf = Callable[[str], tuple[int, int]]
"""From a user's name to the ids of it and its group; raises KeyError when there is no such user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a machine has of one workload's certificate."""

    workload: str
    identity: str
    expires: dt.datetime | None
    """None: there is none, or none that can be read."""
    renew: dt.datetime | None
    """When half of its life is over."""
    problem: str = ""
    """Why it is due whatever its age."""

    def is_due(self, now: dt.datetime) -> bool:
        """Whether it is to be renewed."""
        return bool(self.problem) or self.renew is None or self.renew <= now


def kept(plan: CertificatePlan, certificates: Path) -> tuple[Kept, ...]:
    """Look at every certificate of the plan. Raises OSError."""
    return tuple(_look(wanted, certificates / wanted.workload) for wanted in plan.wanted)


def renew(
    plan: CertificatePlan,
    workloads: tuple[str, ...],
    certificates: Path,
    sign: Sign,
    now: dt.datetime,
    owner_of: OwnerOf | None = None,
) -> None:
    """Make keys, have them signed, and put all of them in their places, each in one step.

    Raises RequestError, OSError, KeyError (no such user), and what `sign` raises; whatever is there stays in force then.
    """
    if not workloads:
        return
    keys = Keys.make(workloads)
    owners = {name: None if owner_of is None else owner_of(plan.of(name).user) for name in workloads}
    leaves = keys.leaves(sign(keys.request()), now)
    public_directory(certificates)
    for name, leaf in leaves.items():
        publish_leaf(certificates / name, leaf, owners[name])


def write_trust(folder: Path, certificates: Path, plan: CertificatePlan) -> bool:
    """Copy the newest list of authorities to where everybody may read it; whether it changed. Raises OSError."""
    sources = [certificates / wanted.workload / "..data" / AUTHORITIES for wanted in plan.wanted]
    found = max((path for path in sources if path.exists()), key=lambda path: path.stat().st_mtime_ns, default=None)
    if found is None:
        return False
    target, content = public_directory(folder) / AUTHORITIES, found.read_bytes()
    if target.exists() and target.read_bytes() == content:
        return False
    write_private(target, content, PUBLIC_MODE)
    return True


def public_directory(path: Path) -> Path:
    """Make a folder that everybody may enter. Raises OSError."""
    if not path.exists():
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(PUBLIC_DIRECTORY_MODE)
    return path


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep a second renewal waiting until this one is done. Raises OSError."""
    descriptor = os.open(public_directory(folder) / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _look(wanted: Wanted, folder: Path) -> Kept:
    try:
        leaf = installed_leaf(folder)
    except ValueError:
        return Kept(workload=wanted.workload, identity=wanted.identity, expires=None, renew=None, problem="damaged")
    if leaf is None:
        return Kept(workload=wanted.workload, identity=wanted.identity, expires=None, renew=None, problem="missing")
    issued, expires = leaf.not_valid_before_utc + BACKDATE, leaf.not_valid_after_utc
    problem = "" if _names(leaf) == (wanted.identity, *wanted.hosts) else "has other names"
    renew_at = issued + (expires - issued) / 2
    return Kept(workload=wanted.workload, identity=wanted.identity, expires=expires, renew=renew_at, problem=problem)


def _names(leaf: x509.Certificate) -> tuple[str, ...]:
    found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return tuple(str(name.value) for name in found)
