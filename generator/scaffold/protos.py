"""The .proto files below a folder, and the folders that their imports start from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from generator.catalog.protoc import find_sources, library_roots

OTHERS_PACKAGES = frozenset(
    {"buf", "cel", "envoy", "gogoproto", "google", "grpc", "opentelemetry", "udpa", "validate", "xds"}
)
"""First words of packages that projects carry along to import them, and do not serve."""
OTHERS_FOLDERS = frozenset({"fixtures", "test", "testdata", "tests", "third_party", "vendor"})
"""Folders of which nobody runs what they define."""
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_PACKAGE = re.compile(r"(?:^|;)\s*package\s+([\w.]+)\s*(?=;)", re.MULTILINE)
_IMPORT = re.compile(r"(?:^|;)\s*import\s+(?:public\s+|weak\s+|option\s+)?[\"']([^\"'\n]+)[\"']\s*(?=;)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proto:
    """One file, and what its text says of its place."""

    path: PurePosixPath
    """Relative to the folder that was searched."""
    package: str
    imports: tuple[str, ...]

    @property
    def is_others(self) -> bool:
        """Whether it is carried along for imports only."""
        return self.package.split(".")[0] in OTHERS_PACKAGES or not OTHERS_FOLDERS.isdisjoint(self.path.parts)


def find_protos(base: Path) -> tuple[Proto, ...]:
    """Every file below `base`, by path. Raises OSError, TooManyFilesError."""
    return tuple(_read(source.path, PurePosixPath(source.name)) for source in find_sources(base))


def _read(file: Path, path: PurePosixPath) -> Proto:
    text = _COMMENT.sub("", file.read_text(encoding="utf-8", errors="replace"))
    package = _PACKAGE.search(text)
    return Proto(path=path, package=package[1] if package else "", imports=tuple(_IMPORT.findall(text)))


def import_roots(base: Path, protos: tuple[Proto, ...]) -> tuple[PurePosixPath, ...]:
    """The folders, relative to `base`, that imports start from; none lies in another.

    buf's configuration says it where there is one. Else another file's import does, else the package, whose words folders
    are usually named by, else it is the file's own folder.
    """
    own = [proto for proto in protos if not proto.is_others] or list(protos)
    declared = tuple(_declared(base, own))
    imports = sorted({name for proto in protos for name in proto.imports})
    roots = {_root(proto, declared, imports) for proto in own}
    wanted = {name for name in imports if not any((folder / name).is_file() for folder in library_roots())}
    others = (proto for proto in protos if proto.is_others and proto not in own)
    roots |= {root for proto in others if (root := _by_imports(proto.path, wanted)) is not None}
    return tuple(sorted(root for root in roots if roots.isdisjoint(root.parents)))


def _root(proto: Proto, declared: tuple[PurePosixPath, ...], imports: Iterable[str]) -> PurePosixPath:
    for root in declared:
        if proto.path.is_relative_to(root):
            return root
    return _by_imports(proto.path, imports) or _by_package(proto) or proto.path.parent


def _by_imports(path: PurePosixPath, imports: Iterable[str]) -> PurePosixPath | None:
    for name in imports:
        below = PurePosixPath(name).parts
        if path.parts[-len(below) :] == below:
            return PurePosixPath(*path.parts[: -len(below)])
    return None


def _by_package(proto: Proto) -> PurePosixPath | None:
    words, folders = tuple(proto.package.split(".")), proto.path.parent.parts
    return PurePosixPath(*folders[: -len(words)]) if proto.package and folders[-len(words) :] == words else None


def _declared(base: Path, protos: Iterable[Proto]) -> Iterator[PurePosixPath]:
    """The modules of buf.yaml and buf.work.yaml in and above the files' folders, the longest path first."""
    folders = {folder for proto in protos for folder in proto.path.parents}
    found = {root for folder in folders for root in _modules(base, folder)}
    yield from sorted(found, key=lambda root: (-len(root.parts), root))


def _modules(base: Path, folder: PurePosixPath) -> Iterator[PurePosixPath]:
    workspace = _mapping(base / folder / "buf.work.yaml")
    for name in _texts(workspace.get("directories")):
        yield folder / name
    module = _mapping(base / folder / "buf.yaml")
    listed = [entry.get("path", ".") for entry in module.get("modules") or () if isinstance(entry, dict)]
    if module.get("version") == "v2":
        yield from (folder / name for name in _texts(listed or ["."]))
    elif module:
        yield folder


def _mapping(path: Path) -> dict[str, Any]:
    """A YAML file's mapping; empty when there is none that can be read."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _texts(value: object) -> list[str]:
    """The folders of a list; one that leads out of the folder is of no use."""
    listed = value if isinstance(value, list) else []
    return [item for item in listed if isinstance(item, str) and ".." not in PurePosixPath(item).parts]
