"""The manifest's protobuf folders, compiled: every service, every method, and the descriptors themselves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from generator.catalog.methods import services_of
from generator.catalog.protoc import (
    FILES_MAX,
    ProtocBrokenError,
    ProtocRefusedError,
    Source,
    TooManyFilesError,
    compile_sources,
    find_sources,
)
from generator.manifest.finding import Position, Reporter, printable, quoted
from generator.manifest.values import Located
from generator.model import Method

COMPLAINTS_MAX = 20
"""protoc's complaints that become findings; the rest mostly follow from the first ones."""
PROTO_LINE_LENGTH_MAX = 120
COMPLAINT = re.compile(r"(?P<path>.+?\.proto):(?P<line>[0-9]+):(?P<column>[0-9]+): (?P<text>.*)")
"""One line of what protoc says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """What the protobufs say."""

    services: Mapping[str, tuple[Method, ...]]
    """Full service name to methods, both sorted; imported files included."""
    descriptor_set: bytes
    """Serialized FileDescriptorSet, imports included; the same bytes for the same files."""


def compile_catalog(folders: tuple[Located[str], ...], base: Path, reporter: Reporter) -> Catalog | None:
    """Compile the folders (relative to `base`); None after findings, which point at the folder's place."""
    roots = {folder: (base / folder.value).absolute() for folder in folders}
    sources = {folder: _sources(folder, root, reporter) for folder, root in roots.items()}
    found = [source for listed in sources.values() for source in listed or ()]
    if any(listed is None for listed in sources.values()) or _twice(sources, reporter):
        return None
    try:
        descriptors = compile_sources(tuple(roots.values()), tuple(found))
    except ProtocRefusedError as error:
        _complain(str(error), roots, reporter)
        return None
    except ProtocBrokenError as error:
        fix = "install nipmesh again; `nipmesh doctor` looks at this machine"
        reporter.report("NM203", folders[0].position, "cannot run protoc", cause=str(error), fix=fix)
        return None
    return Catalog(services=services_of(descriptors), descriptor_set=descriptors)


def _sources(folder: Located[str], root: Path, reporter: Reporter) -> tuple[Source, ...] | None:
    code, cause, fix = "NM201", "", "name a folder with .proto files, relative to the manifest"
    if ":" in str(root):
        cause, fix = "protoc separates folders by colons; this path has one", "move it to a path without a colon"
    elif not root.is_dir():
        cause = f"{printable(str(root))} is {'not a folder' if root.exists() else 'not there'}"
    else:
        try:
            found = find_sources(root)
        except OSError as error:
            cause = f"reading {printable(str(error.filename))} failed: {error.strerror}"
        except TooManyFilesError:
            code, cause = "NM205", f"it holds more than {FILES_MAX} .proto files"
        else:
            strange = next((source for source in found if not printable_name(source.name)), None)
            if found and strange is None:
                return found
            cause = f"{printable(str(root))} holds no .proto file"
            if strange is not None:
                cause, fix = f"a file has a strange name: {quoted(strange.name)}", "rename the file"
    reporter.report(code, folder.position, f"protos: cannot use {quoted(folder.value)}", cause=cause, fix=fix)
    return None


def printable_name(name: str) -> bool:
    """Whether protoc can be told this file's name: printable and encodable."""
    return name.isprintable()


def _twice(sources: Mapping[Located[str], tuple[Source, ...] | None], reporter: Reporter) -> bool:
    seen: dict[str, Located[str]] = {}
    twice = False
    for folder, listed in sources.items():
        for source in listed or ():
            first = seen.setdefault(source.name, folder)
            if first is not folder:
                twice = True
                cause = f"{quoted(source.name)} is in {quoted(first.value)} and in {quoted(folder.value)}"
                fix = "keep one of the files, or drop one folder"
                reporter.report("NM204", folder.position, "a .proto file twice", cause=cause, fix=fix)
    return twice


def _complain(complaints: str, roots: Mapping[Located[str], Path], reporter: Reporter) -> None:
    """Turn protoc's lines into findings at the folder they stem from."""
    count = 0
    for line in complaints.splitlines():
        match = COMPLAINT.fullmatch(line)
        if match is None or match["text"].startswith("warning:"):
            continue
        count += 1
        if count > COMPLAINTS_MAX:
            return
        folder, shown, quote = _place(Path(match["path"]), int(match["line"]), roots)
        message = f"{shown}:{match['line']}:{match['column']}: {printable(match['text'])}"
        reporter.report("NM202", folder, message, cause=quote, fix=fix_of(match["text"]))
    if count == 0:
        first = next(iter(roots)).position
        words = "; ".join(printable(line) for line in complaints.splitlines()[:COMPLAINTS_MAX]) or "protoc said nothing"
        reporter.report("NM202", first, "the protobuf files do not compile", cause=words, fix="correct the files")


def _place(path: Path, line: int, roots: Mapping[Located[str], Path]) -> tuple[Position, str, str]:
    """Return the manifest's position, the file as the user would name it, and the quoted line of the .proto."""
    for folder, root in roots.items():
        candidate = path if path.is_absolute() else root / path
        if candidate.is_relative_to(root) and candidate.is_file():
            lines = candidate.read_text(encoding="utf-8", errors="replace").splitlines()
            text = lines[line - 1].strip()[:PROTO_LINE_LENGTH_MAX] if 0 < line <= len(lines) else ""
            shown = (Path(folder.value) / candidate.relative_to(root)).as_posix()
            quote = f"the line is {quoted(text)}" if text else "the file ends too early"
            return folder.position, printable(shown), quote
    return next(iter(roots)).position, printable(str(path)), "protoc refuses this file"


def fix_of(text: str) -> str:
    """Say what helps against one of protoc's complaints."""
    if "was not found" in text or "File not found" in text:
        return "correct the import's path, or add the folder that holds it to `protos`"
    return "correct the .proto file"
