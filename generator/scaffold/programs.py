"""Which programs below a folder serve which protobuf services, as far as their sources say it without doubt.

A source that adds a service to a gRPC server is looked for in Python, JavaScript and TypeScript, and Go; then what starts
it: a main block, a package's start script, a main package.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from generator.catalog.protoc import is_passed_over

SOURCES_MAX = 20_000
"""More files are not read: the folder is no project."""
SOURCE_BYTES_MAX = 1024 * 1024
"""Larger sources were written by programs."""
PYTHON, GO = ".py", ".go"
JAVASCRIPT = frozenset({".js", ".cjs", ".mjs"})
TYPESCRIPT = frozenset({".ts", ".mts", ".cts"})
_GENERATED = re.compile(r"_pb2(_grpc)?\.py$|\.pb\.go$|_pb\.(js|ts)$|\.d\.ts$|\.min\.js$")
_TEST = re.compile(
    r"(^|/)(tests?|__tests__)/|(^|/)(test_[^/]*|conftest)\.py$|_test\.(go|py)$|\.(test|spec)\.[cm]?[jt]s$"
)
_PYTHON_SERVES = re.compile(r"\badd_(\w+)Servicer_to_server\s*\(")
_GO_SERVES = re.compile(r"\bRegister(\w+)Server\s*\(")
_SCRIPT_SERVES = re.compile(r"\baddService\s*\(\s*([\w.]+)")
_CALLS = re.compile(r"\b(\w+)Stub\s*\(|\bNew(\w+)Client\s*\(")
_MAIN_BLOCK = re.compile(r"^if __name__ == ", re.MULTILINE)
_MAIN_PACKAGE = re.compile(r"^package main\b", re.MULTILINE)
_PLAIN_NODE = re.compile(r"node [\w./-]+")
_PORT = re.compile(r"[\"'.\[]PORT\b")
_HEALTH = re.compile(r"grpc_health|grpc\.health|grpc-health|grpc/health|HealthImplementation")


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What starts a server."""

    run: str
    cwd: str
    """Relative to the folder that was searched; empty: that folder."""
    source: str
    """The file that adds the services, relative to the folder."""
    serves: frozenset[str]
    """Simple names, e.g. `OrderService`."""
    calls: frozenset[str]
    """Simple names of the protobuf services that it makes clients of."""
    reads_listen: bool
    """Its source knows NIPMESH_LISTEN."""
    reads_port: bool
    answers_health: bool


def find_programs(base: Path, names: frozenset[str]) -> tuple[Program, ...]:
    """Every program that serves one of these protobuf services (simple names), by source."""
    sources = dict(_sources(base))
    found = []
    for path, text in sources.items():
        serves = frozenset(_served(path, text)) & names
        started = _started(base, path, text, sources) if serves else None
        if started is not None:
            run, cwd = started
            found.append(_program(run, cwd, path, text, serves, names))
    return tuple(found)


def _program(
    run: str, cwd: PurePosixPath, path: PurePosixPath, text: str, serves: frozenset[str], names: frozenset[str]
) -> Program:
    called = frozenset(first or second for first, second in _CALLS.findall(text))
    return Program(
        run=run,
        cwd="" if cwd == PurePosixPath(".") else str(cwd),
        source=str(path),
        serves=serves,
        calls=called & names - serves,
        reads_listen="NIPMESH_LISTEN" in text,
        reads_port=_PORT.search(text) is not None,
        answers_health=_HEALTH.search(text) is not None,
    )


def _sources(base: Path) -> Iterator[tuple[PurePosixPath, str]]:
    """Sources that people wrote, by path; tests are none."""
    seen = 0
    for folder, folders, files in os.walk(base):
        folders[:] = sorted(name for name in folders if not is_passed_over(Path(folder), name))
        below = PurePosixPath(Path(folder).relative_to(base).as_posix())
        for name in sorted(files):
            path = below / name
            if path.suffix not in {PYTHON, GO, *JAVASCRIPT, *TYPESCRIPT}:
                continue
            seen += 1
            if seen > SOURCES_MAX:
                return
            if not _GENERATED.search(name) and not _TEST.search(str(path)):
                yield path, _text(base / path)


def _text(path: Path) -> str:
    """The text of a source; empty when it is too large or cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.stat().st_size <= SOURCE_BYTES_MAX else ""
    except OSError:
        return ""


def _served(path: PurePosixPath, text: str) -> Iterator[str]:
    if path.suffix == PYTHON:
        yield from _PYTHON_SERVES.findall(text)
    elif path.suffix == GO:
        yield from _GO_SERVES.findall(text)
    else:
        for reference in _SCRIPT_SERVES.findall(text):
            words = reference.split(".")
            name = words[-2] if words[-1] == "service" and len(words) > 1 else words[-1]
            yield from (name, name.removesuffix("Service"))  # generated definitions have the word behind the name


def _started(
    base: Path, path: PurePosixPath, text: str, sources: Mapping[PurePosixPath, str]
) -> tuple[str, PurePosixPath] | None:
    """The command and its folder; None when that is not sure."""
    if path.suffix == PYTHON:
        return _python(base, path, text, sources)
    return _go(base, path, sources) if path.suffix == GO else _node(base, path)


def _python(
    base: Path, path: PurePosixPath, text: str, sources: Mapping[PurePosixPath, str]
) -> tuple[str, PurePosixPath] | None:
    folder = path.parent
    root = next((above for above in (folder, *folder.parents) if not (base / above / "__init__.py").exists()), folder)
    in_package = root != folder
    module = ".".join(folder.relative_to(root).parts)
    if path.name == "__main__.py" or (in_package and folder / "__main__.py" in sources):
        return (
            f"{_interpreter(base, root)} -m {shlex.quote(module or folder.name)}",
            root if module else folder.parent,
        )
    if not _MAIN_BLOCK.search(text):
        return None
    if in_package:
        return f"{_interpreter(base, root)} -m {shlex.quote(f'{module}.{path.stem}')}", root
    return f"{_interpreter(base, PurePosixPath('.'))} {shlex.quote(str(path))}", PurePosixPath(".")


def _interpreter(base: Path, cwd: PurePosixPath) -> str:
    """`python` is the one that runs the mesh; a project with an environment of its own wants that one."""
    own = base / ".venv" / "bin" / "python"
    if not own.exists() or own.parent.parent.resolve() == Path(sys.prefix).resolve():
        return "python"
    return "/".join([*[".."] * len(cwd.parts), ".venv/bin/python"])


def _go(base: Path, path: PurePosixPath, sources: Mapping[PurePosixPath, str]) -> tuple[str, PurePosixPath] | None:
    module = _nearest(base, path, "go.mod")
    if module is None:
        return None
    mains = {
        other.parent for other, text in sources.items()
        if other.suffix == GO and other.is_relative_to(module) and _MAIN_PACKAGE.search(text)
    }  # fmt: skip
    main = path.parent if path.parent in mains else mains.pop() if len(mains) == 1 else None
    return (
        None if main is None else ("go run " + shlex.quote(f"./{main.relative_to(module)}".removesuffix("/.")), module)
    )


def _node(base: Path, path: PurePosixPath) -> tuple[str, PurePosixPath] | None:
    package = _nearest(base, path, "package.json")
    start = "" if package is None else _start_script(base / package / "package.json")
    if package is not None and start:
        return (start if _PLAIN_NODE.fullmatch(start) else "npm start"), package
    return (f"node {shlex.quote(str(path))}", PurePosixPath(".")) if path.suffix in JAVASCRIPT else None


def _start_script(path: Path) -> str:
    try:
        scripts = json.loads(path.read_text(encoding="utf-8")).get("scripts")
        start = scripts.get("start") if isinstance(scripts, dict) else None
    except (OSError, ValueError, AttributeError):
        return ""
    return start.strip() if isinstance(start, str) else ""


def _nearest(base: Path, path: PurePosixPath, name: str) -> PurePosixPath | None:
    folders: Iterable[PurePosixPath] = path.parents
    return next((folder for folder in folders if (base / folder / name).is_file()), None)
