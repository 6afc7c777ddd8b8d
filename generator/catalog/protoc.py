"""Runs grpcio-tools' protoc over folders of .proto files: one short process, 20 ms, no cache needed.

protoc writes its complaints to file descriptor 2 and may abort; in a process of its own neither touches ours. That one
skips `site` and imports the compiled module alone: three times as fast as `python -m grpc_tools.protoc`.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FILES_MAX = 10_000
"""More than any one mesh has; a wrong folder such as `/` is caught by it."""
OUTPUT_BYTES_MAX = 256 * 1024 * 1024
COMPLAINTS_CHARACTERS_MAX = 200_000
COMPILE_SECONDS_MAX = 60.0
NODE_PACKAGES = "node_modules"
VALIDATE_PROTO = "buf/validate/validate.proto"
VALIDATE_DESCRIPTORS = Path(__file__).resolve().parents[1] / "resources" / "data" / "validate.binpb"
"""`buf/validate/validate.proto` and its imports; made at install."""

_CHILD = (
    "import sys; sys.path.append(sys.argv.pop(1)); from grpc_tools import _protoc_compiler as compiler; "
    "sys.exit(compiler.run_main([argument.encode() for argument in sys.argv]))"
)


class ProtocError(Exception):
    """The compiler could not do its work.

    - ProtocRefusedError: it ran and refused the files
    - ProtocBrokenError: it is missing, crashed or ran too long
    """


class ProtocRefusedError(ProtocError):
    """`str()` is what protoc said."""


class ProtocBrokenError(ProtocError):
    """`str()` is a sentence that says what happened."""


class TooManyFilesError(ProtocError):
    """The folder holds more than `FILES_MAX` .proto files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One .proto file: its import root and its path below it, with slashes."""

    root: Path
    name: str

    @property
    def path(self) -> Path:
        """Where it is on disk."""
        return self.root / self.name


def find_sources(root: Path) -> tuple[Source, ...]:
    """Every .proto below the folder, sorted, except in folders that are passed over. Raises OSError, TooManyFilesError."""
    found: list[Source] = []
    for folder, folders, files in os.walk(root, onerror=_raise):
        folders[:] = sorted(name for name in folders if not is_passed_over(Path(folder), name))
        below = Path(folder).relative_to(root)
        found.extend(Source(root=root, name=(below / name).as_posix()) for name in files if name.endswith(".proto"))
        if len(found) > FILES_MAX:
            raise TooManyFilesError(f"more than {FILES_MAX} .proto files")
    return tuple(sorted(found, key=lambda source: source.name))


def is_passed_over(above: Path, name: str) -> bool:
    """Whether nothing in this folder is the project's own: hidden, npm's packages, or a virtual environment of Python."""
    return name.startswith(".") or name == NODE_PACKAGES or (above / name / "pyvenv.cfg").exists()


def _raise(error: OSError) -> None:
    raise error


def compile_sources(roots: tuple[Path, ...], sources: tuple[Source, ...]) -> bytes:
    """Compile files and imports to a serialized FileDescriptorSet. Raises ProtocRefusedError, ProtocBrokenError."""
    with tempfile.TemporaryDirectory(prefix="nipmesh-protoc-") as folder:
        output, arguments = Path(folder) / "descriptors.binpb", Path(folder) / "arguments"
        lines = [*_options(roots, sources, output), *(str(source.path) for source in sources)]
        arguments.write_text("\n".join(lines) + "\n", encoding="utf-8")
        _run(arguments)
        if output.stat().st_size > OUTPUT_BYTES_MAX:
            raise ProtocBrokenError(f"the descriptors have more than {OUTPUT_BYTES_MAX} bytes")
        return output.read_bytes()


def _options(roots: tuple[Path, ...], sources: tuple[Source, ...], output: Path) -> Iterator[str]:
    for folder in (*roots, *library_roots()):
        yield f"--proto_path={folder}"
    if VALIDATE_DESCRIPTORS.exists() and all(source.name != VALIDATE_PROTO for source in sources):
        yield f"--descriptor_set_in={VALIDATE_DESCRIPTORS}"
    yield "--include_imports"
    yield f"--descriptor_set_out={output}"


def library_roots() -> tuple[Path, ...]:
    """Import roots of protobuf's own files and of googleapis-common-protos, when they are installed."""
    roots = []
    for module, below in (("grpc_tools", "_proto"), ("google.api", "../..")):
        folder = _package_folder(module)
        if folder is not None:
            roots.append((folder / below).resolve())
    return tuple(roots)


def _package_folder(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    locations = list(spec.submodule_search_locations or ()) if spec else []
    return Path(locations[0]) if locations else None


def _run(arguments: Path) -> None:
    package = _package_folder("grpc_tools")
    if package is None:
        raise ProtocBrokenError("the package grpcio-tools is not installed")
    command = [sys.executable, "-I", "-S", "-c", _CHILD, str(package.parent), f"@{arguments}"]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=COMPILE_SECONDS_MAX)
    except subprocess.TimeoutExpired as error:
        raise ProtocBrokenError(f"it took longer than {COMPILE_SECONDS_MAX:.0f} s") from error
    except OSError as error:
        raise ProtocBrokenError(f"it did not start: {error.strerror}") from error
    complaints = done.stderr.decode("utf-8", "replace")[:COMPLAINTS_CHARACTERS_MAX]
    if done.returncode < 0:
        raise ProtocBrokenError(f"it was ended by signal {-done.returncode}")
    if done.returncode:
        raise ProtocRefusedError(complaints)
