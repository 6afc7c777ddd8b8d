"""From what a service's entry says about its processes to what it asks of whoever runs them, with reasons."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from generator.manifest.process import ProbeEntry, ResourcesEntry
from generator.manifest.types import ServiceEntry
from generator.manifest.values import Located
from generator.model.defaults import Decided
from generator.model.process import (
    PROBE_FAILURES,
    PROBE_INTERVAL_MS,
    PROBE_TIMEOUT_MS,
    START_PERIOD_MS,
    Probe,
    Resources,
    Volume,
)
from generator.model.recording import Recorder, from_line

FOLDER_BEGINS = (".", "/")
"""As in Compose: what begins otherwise is the name of a volume."""
READ_ONLY = "ro"


def volumes(entry: ServiceEntry, base_entry: ServiceEntry, base: Path) -> tuple[Volume, ...]:
    """The folders of a service, or of the one of which it is a version."""
    return tuple(volume(written.value, base) for written in entry.volumes or base_entry.volumes)


def volume(text: str, base: Path) -> Volume:
    """`cache:/var/cache` or `./rates:/etc/rates:ro`; folders are relative to `base`."""
    source, target, *rest = text.split(":")
    is_folder = source.startswith(FOLDER_BEGINS)
    return Volume(
        source=Path(os.path.normpath(base / source)) if is_folder else source,
        target=PurePosixPath(os.path.normpath(target)),
        is_read_only=rest == [READ_ONLY],
    )


def resources(recorder: Recorder, name: str, *entries: ResourcesEntry | None) -> Resources:
    """The limits of one replica; the first entry that says something wins."""
    given = [entry for entry in entries if entry is not None]
    cpu = _number(recorder, name, "resources.cpu", (entry.cpu for entry in given), None, "as many cores as there are")
    memory = _number(
        recorder, name, "resources.memory", (entry.memory for entry in given), None, "as much memory as there is"
    )
    return Resources(cpu_millis=cpu, memory_bytes=memory)


def probe(recorder: Recorder, name: str, *entries: ProbeEntry | None) -> Probe:
    """How a replica is asked; the first entry that says something wins."""
    given = [entry for entry in entries if entry is not None]
    interval_ms, timeout_ms, failures, start_period_ms = (
        _required(recorder, name, f"probe.{key}", [getattr(entry, field) for entry in given], default, reason)
        for key, field, default, reason in (
            ("interval_ms", "interval", PROBE_INTERVAL_MS, "its callers' sidecars ask much more often"),
            ("timeout_ms", "timeout", PROBE_TIMEOUT_MS, "longer than a garbage collection, shorter than a user waits"),
            ("failures", "failures", PROBE_FAILURES, "one lost answer is no death"),
            ("start_period_ms", "start_period", START_PERIOD_MS, "a hang at start looks like a longer one"),
        )
    )
    commands = [entry.command for entry in given if entry.command is not None]
    return Probe(
        interval_ms=interval_ms,
        timeout_ms=timeout_ms,
        failures=failures,
        start_period_ms=start_period_ms,
        command=commands[0].value if commands else (),
    )


def _required(
    recorder: Recorder, name: str, setting: str, written: Iterable[Located[int] | None], default: int, reason: str
) -> int:
    value = _number(recorder, name, setting, written, default, reason)
    assert value is not None
    return value


def _number(
    recorder: Recorder,
    name: str,
    setting: str,
    written: Iterable[Located[int] | None],
    default: int | None,
    reason: str,
) -> int | None:
    found = next((value for value in written if value is not None), None)
    if found is None:
        return recorder.take(name, setting, Decided(value=default, reason=reason))
    return recorder.take(name, setting, Decided(value=found.value, reason=from_line(found.position.line)))
