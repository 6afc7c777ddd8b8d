"""Checks of volumes: each is there, and none hides another or what nipmesh itself puts into a container."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from generator.manifest.finding import Reporter, did_you_mean, printable, quoted
from generator.manifest.types import Manifest, ServiceEntry
from generator.manifest.values import Entry, Located
from generator.model.needs import volume

OWN_FOLDERS = tuple(
    PurePosixPath(folder)
    for folder in ("/run/nipmesh", "/etc/nipmesh", "/var/lib/nipmesh", "/run/secrets", "/proc", "/sys", "/dev")
)
"""Where nipmesh puts sockets, files, data and secrets, and what is the system's."""
OWN_VOLUMES = ("agent", "gateway", "introspection", "events", "postgresql")
OWN_KINDS = ("data", "secrets", "envoy", "certificates", "sockets")
"""How the volumes of containers are named: by who is in them, and by what of a service they hold."""


def check_volumes(manifest: Manifest, base: Path, reporter: Reporter) -> None:
    """Every volume is one of the mesh's or a folder that is there, and stands where nothing else does."""
    names = {name.value for name in manifest.volumes}
    for name in _repeated(manifest.volumes):
        cause, fix = "it stands in the list before", "remove it"
        reporter.report("NM612", name.position, f"volume {quoted(name.value)} twice", cause=cause, fix=fix)
    for entry in manifest.services:
        _check_targets(entry, base, reporter)
        for written in entry.value.volumes:
            source = volume(written.value, base).source
            where = f"services.{entry.key.value}.volumes"
            if isinstance(source, Path):
                _check_folder(source, written, where, reporter)
            elif source not in names:
                cause = "the mesh's `volumes` do not have it; a folder begins with ./, ../ or /"
                fix = did_you_mean(source, names, what="volume") if names else f"add `volumes: [{source}]` at the top"
                message = f"{where}: there is no volume {quoted(source)}"
                reporter.report("NM612", written.position, message, cause=cause, fix=fix)
    _check_names(manifest, reporter)
    used = {volume(written.value, base).source for entry in manifest.services for written in entry.value.volumes}
    for name in manifest.volumes:
        if name.value not in used:
            cause, fix = "no service has it in its `volumes`", "use it, or remove it"
            reporter.warn("NM612", name.position, f"nobody uses volume {quoted(name.value)}", cause=cause, fix=fix)


def own_volumes(services: Iterable[str]) -> re.Pattern[str]:
    """Match the names of the volumes that containers of these services have anyway: state, keys, sockets."""
    kinds, names = "|".join(OWN_KINDS), "|".join(map(re.escape, services))
    return re.compile(rf"({'|'.join(OWN_VOLUMES)})(-.*)?|({names})(-[0-9]+)?-({kinds})")


def _check_names(manifest: Manifest, reporter: Reporter) -> None:
    own = own_volumes(entry.key.value for entry in manifest.services)
    for name in manifest.volumes:
        if own.fullmatch(name.value):
            cause = "containers have one of this name for what nipmesh itself keeps"
            message = f"volume {quoted(name.value)} is nipmesh's"
            reporter.report("NM612", name.position, message, cause=cause, fix="choose another name")


def _check_folder(folder: Path, written: Located[str], where: str, reporter: Reporter) -> None:
    if folder.exists():
        return
    cause = f"{printable(str(folder))} is not there"
    message = f"{where}: {quoted(written.value)} has nothing to show"
    reporter.report("NM612", written.position, message, cause=cause, fix="create it, or correct the path")


def _check_targets(entry: Entry[ServiceEntry], base: Path, reporter: Reporter) -> None:
    seen: dict[PurePosixPath, int] = {}
    for written in entry.value.volumes:
        target = volume(written.value, base).target
        own = next((folder for folder in OWN_FOLDERS if _overlap(folder, target)), None)
        if own is not None:
            cause = f"{own} is nipmesh's or the system's"
            message = f"a volume may not be at {quoted(str(target))}"
            reporter.report("NM612", written.position, message, cause=cause, fix="choose another folder")
        if target in seen:
            cause = f"line {seen[target]} puts another one there"
            message = f"two volumes at {quoted(str(target))}"
            reporter.report(
                "NM612", written.position, message, cause=cause, fix="choose another folder for one of them"
            )
        seen[target] = written.position.line


def _overlap(folder: PurePosixPath, target: PurePosixPath) -> bool:
    return folder == target or folder in target.parents or target in folder.parents


def _repeated(names: tuple[Located[str], ...]) -> Iterator[Located[str]]:
    seen: set[str] = set()
    for name in names:
        if name.value in seen:
            yield name
        seen.add(name.value)
