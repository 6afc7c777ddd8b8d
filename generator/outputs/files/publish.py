"""Writes a resource set so that Envoy sees each change once, whole, and in a safe order.

Envoy's file xDS sees moves only: every file is written beside its place and moved there.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from generator.outputs.files.layout import BOOTSTRAP, contents, discovery_bytes
from generator.render.names import XDS_FOLDERS, workload_file
from generator.resources import ResourceSet, WorkloadResources

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700


def publish(resources: ResourceSet, directory: Path) -> tuple[Path, ...]:
    """Bring the files below `directory` in line with the resources.

    Only files whose content changes are written, each in one step; files and workloads that are no more are removed.
    Returns the paths that changed, removed ones included. Raises OSError and ResourceError.
    """
    changed: list[Path] = []
    _folder(directory)
    for workload in resources.workloads:
        changed += _publish_workload(workload, directory)
    present = {workload.name for workload in resources.workloads}
    for folder in sorted(directory.iterdir()):
        if folder.name not in present and (folder / BOOTSTRAP).is_file():
            shutil.rmtree(folder)
            changed.append(folder)
    return tuple(changed)


def _publish_workload(workload: WorkloadResources, directory: Path) -> Iterator[Path]:
    wanted = {directory / path: content for path, content in contents(workload).items()}
    for folder in (directory / workload.name, *(directory / workload.name / name for name in XDS_FOLDERS.values())):
        _folder(folder)
    clusters = workload_file(directory, workload.name, "clusters")
    interim = _with_old_clusters(clusters, workload)
    for path, content in wanted.items():
        if path == clusters and interim is not None:
            _move_into_place(path, interim)
        elif _replace(path, content):
            yield path
    if interim is not None and _replace(clusters, wanted[clusters]):
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


def _replace(path: Path, content: bytes) -> bool:
    """Write the file when its content differs; whether it did."""
    try:
        if path.read_bytes() == content:
            return False
    except FileNotFoundError:
        pass
    _move_into_place(path, content)
    return True


def _move_into_place(path: Path, content: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), FILE_MODE)
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


def _folder(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True, mode=DIRECTORY_MODE)
