"""Waits until every Envoy runs what was published, or hears from one that it refuses.

Sidecars that are down, or on their way up, are not waited for: they read the files when they start.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from generator.outputs.files.versions import Key, published_versions
from generator.outputs.local.errors import OperationError, RefusedError
from generator.outputs.local.logs import size_of
from generator.outputs.local.supervisor import Supervisor
from generator.outputs.local.versions import Heard, State, hear_all, state_of
from generator.outputs.local.workload import Part

TAKEN_TIMEOUT_S = 30.0
"""Envoy reads a moved file within 4 ms; a new cluster warms until its first health check is over."""
TAKEN_POLL_S = 0.02
WORDS = re.compile(rb"Filesystem config update (?:rejected|failure): (.*)")
"""How Envoy's log says why; what it quotes of the file is left out."""
WORDS_LENGTH_MAX = 500
LOG_BYTES_MAX = 4 * 1024 * 1024
"""Access logs stand between Envoy's words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What every Envoy ran just before something was published."""

    heard: Mapping[str, Heard]
    published: Mapping[str, Mapping[Key, str]]
    pids: Mapping[str, int | None]
    log_sizes: Mapping[str, int] = field(repr=False)


async def moment(supervisor: Supervisor) -> Moment:
    """Ask everybody, now."""
    admins = supervisor.admins()
    return Moment(
        heard=await hear_all(admins),
        published={name: published(supervisor, name) for name in admins},
        pids={name: pid_of(supervisor, name) for name in admins},
        log_sizes={name: size_of(_log(supervisor, name)) for name in admins},
    )


async def until_taken(supervisor: Supervisor, before: Moment, timeout_s: float = TAKEN_TIMEOUT_S) -> tuple[str, ...]:
    """Wait until every Envoy that is up runs what is published; give the names of those that are not there to ask.

    Raises RefusedError as soon as one refuses a file, and OperationError when one takes too long.
    """
    waiting = set(supervisor.admins())
    try:
        async with asyncio.timeout(timeout_s):
            while waiting := await _behind(supervisor, before, waiting):  # noqa: ASYNC110  # other processes read
                await asyncio.sleep(TAKEN_POLL_S)
    except TimeoutError as error:
        names = ", ".join(sorted(waiting))
        raise OperationError(f"not all sidecars run the new configuration after {timeout_s:.0f} s: {names}") from error
    return tuple(sorted(supervisor.runners.keys() - supervisor.admins().keys()))


async def _behind(supervisor: Supervisor, before: Moment, names: set[str]) -> set[str]:
    """Give those of the names that do not run what is published yet. Raises RefusedError."""
    admins = {name: admin for name, admin in supervisor.admins().items() if name in names}
    heard = await hear_all(admins)
    for name, now in heard.items():
        _raise_refusal(supervisor, before, name, now)
    return {name for name in admins if name not in heard or not _is_current(supervisor, before, name, heard[name])}


def _raise_refusal(supervisor: Supervisor, before: Moment, name: str, now: Heard) -> None:
    was = _before(supervisor, before, name)
    for key, subscription in now.subscriptions.items():
        if subscription.refused > was.subscription(key).refused:
            raise RefusedError(workload=name, key=key, words=_words(supervisor, before, name))
    if now.unknown_fields > was.unknown_fields:
        words = "it knows nothing of one of the fields"
        raise RefusedError(workload=name, key=("resources", ""), words=words)


def _is_current(supervisor: Supervisor, before: Moment, name: str, now: Heard) -> bool:
    was, wanted = _before(supervisor, before, name), published(supervisor, name)
    earlier = before.published.get(name, {})
    for key, version in wanted.items():
        if state_of(key, version, now) is not State.CURRENT:
            return False
        is_written = earlier.get(key) != version
        if is_written and now.subscription(key).taken == was.subscription(key).taken:
            return False  # the version of before the refusal that is being undone: the file itself is not read yet
    return now.warming == 0


def _before(supervisor: Supervisor, before: Moment, name: str) -> Heard:
    """Give what an Envoy had said; one that was started since has counted anew."""
    is_same = before.pids.get(name) == pid_of(supervisor, name)
    return before.heard.get(name, Heard()) if is_same else Heard()


def _words(supervisor: Supervisor, before: Moment, name: str) -> str:
    """Find Envoy's reasons in its log, the part that was written since."""
    with _log(supervisor, name).open("rb") as log:
        log.seek(before.log_sizes.get(name, 0))
        found = WORDS.findall(log.read(LOG_BYTES_MAX))
    return "; ".join(dict.fromkeys(map(shortened, found))) or "it gives no reason"


def shortened(line: bytes) -> str:
    """Leave out what Envoy quotes of the file."""
    return line.decode("utf-8", "replace").partition("): {")[0][:WORDS_LENGTH_MAX]


def _log(supervisor: Supervisor, name: str) -> Path:
    return supervisor.setup.paths.log(name, Part.SIDECAR.value)


def published(supervisor: Supervisor, workload: str) -> dict[Key, str]:
    """Read the versions of a workload's files."""
    return published_versions(supervisor.setup.paths.envoy, workload)


def pid_of(supervisor: Supervisor, workload: str) -> int | None:
    """Give the process id of a workload's Envoy."""
    runner = supervisor.runners.get(workload)
    return None if runner is None else runner.workload.sidecar.pid
