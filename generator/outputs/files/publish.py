"""Writes a resource set so that Envoy sees each change once, whole, and in a safe order.

Envoy's file xDS sees moves only: every file is written beside its place and moved there.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from generator.outputs.files.layout import BOOTSTRAP, contents, discovery_bytes
from generator.render.names import XDS_FOLDERS, workload_file
from generator.resources import ResourceSet, WorkloadResources
from generator.resources.memo import Memo


@dataclass(frozen=True, slots=True, kw_only=True)
class Modes:
    """Who may read what is written."""

    file: int
    directory: int


PRIVATE = Modes(file=0o600, directory=0o700)
PUBLIC = Modes(file=0o644, directory=0o755)
"""Of root's files, which the mesh's users read: there is nothing secret in a configuration."""
WORKLOADS_MAX = 20_000
"""Workloads whose files are known, so that they need not be read when nothing changed."""

Seal = tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What was written for a workload, and how its files and folders looked then."""

    workload: WorkloadResources
    paths: tuple[str, ...]
    seal: Seal


_published: Memo[tuple[str, str], Published] = Memo(WORKLOADS_MAX)


def publish(resources: ResourceSet, directory: Path, modes: Modes = PRIVATE) -> tuple[Path, ...]:
    """Bring the files below `directory` in line with the resources.

    Only files whose content changes are written, each in one step; files and workloads that are no more are removed.
    Files are not even read where neither they nor the workload changed since this process wrote them.
    Returns the paths that changed, removed ones included. Raises OSError and ResourceError.
    """
    changed: list[Path] = []
    _folder(directory, modes)
    for workload in resources.workloads:
        key = (str(directory), workload.name)
        known = _published.get(key)
        if known is None or known.workload is not workload or known.seal != _seal(known.paths):
            wanted = {directory / path: content for path, content in contents(workload).items()}
            changed += _publish_workload(workload, wanted, directory, modes)
            paths = tuple(str(path) for path in (*_folders(workload, directory), *wanted))
            _published.put(key, Published(workload=workload, paths=paths, seal=_seal(paths)))
    present = {workload.name for workload in resources.workloads}
    for name in sorted(os.listdir(directory)):  # noqa: PTH208  # a Path for each of ten thousand is a tenth of a second
        if name not in present and (directory / name / BOOTSTRAP).is_file():
            shutil.rmtree(directory / name)
            changed.append(directory / name)
    return tuple(changed)


def write_changed(path: Path, content: bytes, modes: Modes = PRIVATE) -> list[Path]:
    """Write a file beside the workloads' when it changed; its path then. Raises OSError."""
    _folder(path.parent, modes)
    return [path] if _replace(path, content, modes) else []


def _seal(paths: Iterable[str]) -> Seal:
    """Whatever writes, moves or removes a file or an entry of a folder changes this. Empty when one is missing."""
    try:
        found = [os.stat(path) for path in paths]  # noqa: PTH116  # the same
    except OSError:
        return ()
    return tuple((status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns) for status in found)


def _folders(workload: WorkloadResources, directory: Path) -> tuple[Path, ...]:
    return (directory / workload.name, *(directory / workload.name / name for name in XDS_FOLDERS.values()))


def _publish_workload(
    workload: WorkloadResources, wanted: dict[Path, bytes], directory: Path, modes: Modes
) -> Iterator[Path]:
    for folder in _folders(workload, directory):
        _folder(folder, modes)
    clusters = workload_file(directory, workload.name, "clusters")
    interim = _with_old_clusters(clusters, workload)
    for path, content in wanted.items():
        if path == clusters and interim is not None:
            _move_into_place(path, interim, modes)
        elif _replace(path, content, modes):
            yield path
    if interim is not None and _replace(clusters, wanted[clusters], modes):
        yield clusters
    yield from _remove_others(directory / workload.name, set(wanted))


def _with_old_clusters(path: Path, workload: WorkloadResources) -> bytes | None:
    """Give the new clusters and those that are to go: routes still name these until they are replaced.

    None when no cluster goes.
    """
    try:
        old = {cluster["name"]: cluster for cluster in json.loads(path.read_bytes())["resources"]}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # no file yet, or one that is none of ours: then no Envoy has these clusters
    names = {cluster.name for cluster in workload.clusters}
    leaving = [cluster for name, cluster in old.items() if name not in names]
    if not leaving:
        return None
    new = [{"@type": cluster.type_url, **cluster.body} for cluster in workload.clusters]
    return discovery_bytes([*new, *leaving])


def _replace(path: Path, content: bytes, modes: Modes) -> bool:
    """Write the file when its content differs; whether it did."""
    try:
        if path.read_bytes() == content:
            return False
    except FileNotFoundError:
        pass
    _move_into_place(path, content, modes)
    return True


def _move_into_place(path: Path, content: bytes, modes: Modes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), modes.file)
            file.write(content)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _remove_others(folder: Path, wanted: set[Path]) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path not in wanted:
            path.unlink()
            yield path


def _folder(path: Path, modes: Modes) -> None:
    """Make the folder and those above it, all with this mode; what is there keeps its own."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=modes.directory, exist_ok=True)
        folder.chmod(modes.directory)  # whatever the umask
