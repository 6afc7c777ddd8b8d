"""What each Envoy says that it runs with, against what stands in its files.

Envoy tells of every subscription, in its statistics: the version of the last update that it took, and how many it took and
refused. A file that it refuses changes nothing, or only the resources of it that are good.
"""

from __future__ import annotations

import asyncio
import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from generator.introspection.admin import AdminError, get_json
from generator.outputs.files.versions import Key

FILTER = (
    r"^(listener_manager\.lds|cluster_manager\.cds|http\.[^.]%2B\.rds\..*|sds\..*|cluster\..*)"
    r"\.(version_text|update_success|update_rejected|update_failure)$"
    r"|warming|dynamic_unknown_fields$"
)
"""Of the statistics, what is about subscriptions. `%2B` is a plus sign in a URL."""
SUBSCRIPTION = re.compile(
    r"(?:(?P<listeners>listener_manager\.lds)|(?P<clusters>cluster_manager\.cds)|http\.[^.]+\.rds\.(?P<routes>.+)"
    r"|sds\.(?P<secrets>.+)|cluster\.(?P<endpoints>.+))\.(?P<what>version_text|update_\w+)"
)
WARMING = frozenset({"cluster_manager.warming_clusters", "listener_manager.total_listeners_warming"})
HEAR_TIMEOUT_S = 0.5
"""An Envoy that takes longer is asked again, or shown as one that does not answer."""
UNKNOWN_FIELDS = "server.dynamic_unknown_fields"


class State(enum.Enum):
    """How a running version stands to the published one; the values are what `status` prints."""

    CURRENT = "current"
    STALE = "stale"
    """Not read yet, or still warming."""
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """One file as Envoy sees it."""

    version: str | None = None
    """Of the last update that it took; None before the first."""
    taken: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What one Envoy said."""

    subscriptions: Mapping[Key, Subscription] = field(default_factory=dict)
    warming: int = 0
    """Clusters and listeners that it has taken and does not use yet."""
    unknown_fields: int = 0

    def subscription(self, key: Key) -> Subscription:
        """Give one subscription; one that Envoy does not know (yet) has taken nothing."""
        return self.subscriptions.get(key, Subscription())


async def hear(admin: Path) -> Heard | None:
    """Ask one Envoy; None when it does not answer."""
    try:
        return parse(await get_json(admin, f"/stats?format=json&filter={FILTER}", HEAR_TIMEOUT_S))
    except (OSError, TimeoutError, AdminError, ValueError):
        return None


async def hear_all(admins: Mapping[str, Path]) -> dict[str, Heard]:
    """Ask all of them at once; those that do not answer are left out."""
    answers = await asyncio.gather(*(hear(admin) for admin in admins.values()))
    return {name: heard for name, heard in zip(admins, answers, strict=True) if heard is not None}


def parse(document: Mapping[str, Any]) -> Heard:
    """Read Envoy's `/stats?format=json`."""
    values: dict[Key, dict[str, Any]] = {}
    warming = unknown = 0
    for entry in document.get("stats", ()):
        name, value = entry.get("name"), entry.get("value")
        if name is None:
            continue  # histograms
        if name in WARMING:
            warming += value
        elif name == UNKNOWN_FIELDS:
            unknown = value
        elif (found := SUBSCRIPTION.fullmatch(name)) is not None:
            values.setdefault(_key(found), {})[found["what"]] = value
    return Heard(
        subscriptions={key: _subscription(parts) for key, parts in values.items()},
        warming=warming,
        unknown_fields=unknown,
    )


def _key(found: re.Match[str]) -> Key:
    for kind in ("listeners", "clusters"):
        if found[kind] is not None:
            return kind, ""
    kind = next(kind for kind in ("routes", "secrets", "endpoints") if found[kind] is not None)
    return kind, found[kind]


def _subscription(parts: Mapping[str, Any]) -> Subscription:
    return Subscription(
        version=parts.get("version_text") or None,
        taken=parts.get("update_success", 0),
        refused=parts.get("update_rejected", 0) + parts.get("update_failure", 0),
    )


def state_of(key: Key, published: str, heard: Heard) -> State:
    """Compare one file's version with what Envoy runs."""
    subscription = heard.subscription(key)
    if subscription.version == published:
        return State.CURRENT
    return State.REFUSED if subscription.refused else State.STALE


def worst(states: Iterable[State]) -> State:
    """Sum up: one refused file is worse than one that is not read yet."""
    found = set(states)
    return next((state for state in (State.REFUSED, State.STALE) if state in found), State.CURRENT)
