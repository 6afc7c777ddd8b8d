"""From the files of a folder to the services of a mesh: which protobuf services belong to one program, and its name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from google.protobuf import descriptor_pb2

from generator.catalog.protoc import ProtocRefusedError, Source, compile_sources, find_sources
from generator.manifest.finding import Finding
from generator.manifest.policies import NAME_LENGTH_MAX
from generator.model.mesh import GATEWAY
from generator.scaffold.complaints import findings_of
from generator.scaffold.programs import Program, find_programs
from generator.scaffold.protos import Proto, find_protos, import_roots

FIRST_PORT = 50_051
"""Of programs that listen on TCP; the port that gRPC's own examples use."""
_VERSION = re.compile(r"v[0-9]+((alpha|beta)[0-9]*)?|v[0-9]+p[0-9]+((alpha|beta)[0-9]*)?")
_EVERYDAY = frozenset({"", "__main__", "app", "cmd", "index", "main", "server", "src"})
"""Names of files and folders that say nothing about what a program does."""


class NoServicesError(Exception):
    """There is nothing to make a mesh of; `str()` says why, `fix` what helps."""

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(reason)
        self.fix = fix


class RefusedError(Exception):
    """The .proto files do not compile; `findings` say where, `str()` what was tried."""

    def __init__(self, findings: tuple[Finding, ...], roots: tuple[PurePosixPath, ...]) -> None:
        tried = ", ".join(str(root) for root in roots)
        super().__init__(f"the .proto files do not compile, with imports that start in {tried}")
        self.findings = findings


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedService:
    """One service of the mesh."""

    name: str
    serves: tuple[str, ...]
    """Full names."""
    files: tuple[str, ...]
    """The .proto files that define them, relative to the folder."""
    program: Program | None
    """None when nothing says for sure how it is started."""
    candidates: tuple[str, ...] = ()
    """Sources of the programs that serve the same, when there are several."""
    calls: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Services of the mesh, and the protobuf services of theirs that its program makes clients of."""
    port: int = FIRST_PORT
    """Where its first replica would listen if it needs TCP."""
    command: str = ""
    """How it is started, as the user says; empty: as `program` does."""

    @property
    def is_started(self) -> bool:
        """Whether it is known how."""
        return bool(self.command) or self.program is not None

    @property
    def needs_port(self) -> bool:
        """Whether its program listens where PORT says, and not on the mesh's socket."""
        return self.program is not None and self.program.reads_port and not self.program.reads_listen


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the manifest will say."""

    mesh: str
    protos: tuple[str, ...]
    services: tuple[PlannedService, ...]

    @property
    def called(self) -> frozenset[str]:
        """The protobuf services that programs of the mesh call."""
        return frozenset(name for service in self.services for _, names in service.calls for name in names)


def plan_of(base: Path, mesh: str) -> Plan:
    """Look at everything below `base`, an absolute folder. Raises NoServicesError, RefusedError, ProtocError, OSError."""
    if ":" in str(base):
        raise NoServicesError("protoc separates folders by colons, and this path has one", "move the folder")
    protos = find_protos(base)
    if not protos:
        raise NoServicesError(
            "there is no .proto file below this folder",
            "put those of your services into it, for example into `protos`; or `nipmesh init --example` writes a small project",
        )
    roots = import_roots(base, protos)
    defined = _defined(base, roots, protos)
    if not defined:
        found = f"{len(protos)} .proto file{'' if len(protos) == 1 else 's'}, and no `service` in any of them"
        raise NoServicesError(
            f"there are {found}", "a mesh carries calls: define a service, or run this where it is defined"
        )
    return Plan(mesh=mesh, protos=tuple(str(root) for root in roots), services=_services(base, defined))


def _defined(base: Path, roots: tuple[PurePosixPath, ...], protos: tuple[Proto, ...]) -> dict[str, str]:
    """Full name of each protobuf service of the project's own, to its file. Raises RefusedError, ProtocError, OSError."""
    sources: dict[str, tuple[Source, str]] = {}
    for root in roots:
        for source in find_sources(base / root):
            sources.setdefault(source.name, (source, str(root / source.name)))
    absolute = tuple(base / root for root in roots)
    try:
        compiled = compile_sources(absolute, tuple(source for source, _ in sources.values()))
    except ProtocRefusedError as error:
        raise RefusedError(findings_of(str(error), base, roots), roots) from error
    own = {str(proto.path) for proto in protos if not proto.is_others} or {str(proto.path) for proto in protos}
    found: dict[str, str] = {}
    for file in descriptor_pb2.FileDescriptorSet.FromString(compiled).file:
        shown = sources[file.name][1] if file.name in sources else ""
        if shown in own:
            found |= {f"{file.package}.{service.name}".lstrip("."): shown for service in file.service if service.method}
    return dict(sorted(found.items()))


def _services(base: Path, defined: Mapping[str, str]) -> tuple[PlannedService, ...]:
    counts = Counter(_simple(name) for name in defined)
    sure = frozenset(name for name, count in counts.items() if count == 1)
    programs = find_programs(base, sure)
    groups: dict[object, list[str]] = {}
    for name in defined:
        serving = _serving(name, programs, sure)
        groups.setdefault(serving[0] if len(serving) == 1 else _plain(name), []).append(name)
    names = _names(groups)
    owner = {service: names[key] for key, services in groups.items() for service in services}
    planned = [
        _planned(names[key], key if isinstance(key, Program) else None, services, defined, owner, programs, sure)
        for key, services in groups.items()
    ]
    return _with_ports(sorted(planned, key=lambda service: service.name))


def _planned(
    name: str,
    program: Program | None,
    services: list[str],
    defined: Mapping[str, str],
    owner: Mapping[str, str],
    programs: tuple[Program, ...],
    sure: frozenset[str],
) -> PlannedService:
    calls: dict[str, list[str]] = {}
    clients = program.calls if program is not None else frozenset()
    for called in defined:
        if _simple(called) in clients and owner[called] != name:
            calls.setdefault(owner[called], []).append(called)
    others = {other.source for service in services for other in _serving(service, programs, sure)}
    return PlannedService(
        name=name,
        serves=tuple(services),
        files=tuple(sorted({defined[service] for service in services})),
        program=program,
        candidates=tuple(sorted(others)) if program is None else (),
        calls=tuple((callee, tuple(names)) for callee, names in sorted(calls.items())),
    )


def _with_ports(services: Iterable[PlannedService]) -> tuple[PlannedService, ...]:
    return tuple(replace(service, port=FIRST_PORT + index) for index, service in enumerate(services))


def _serving(name: str, programs: tuple[Program, ...], sure: frozenset[str]) -> tuple[Program, ...]:
    simple = _simple(name)
    return tuple(program for program in programs if simple in program.serves) if simple in sure else ()


def _simple(name: str) -> str:
    return name.rpartition(".")[2]


def _plain(name: str) -> str:
    """What groups protobuf services without a program: the package without its version, or the service's own name."""
    package = name.rpartition(".")[0].split(".")
    words = package[:-1] if _VERSION.fullmatch(package[-1]) else package
    return ".".join(words) or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", _simple(name)).lower().removesuffix("-service")


def _names(groups: Mapping[object, list[str]]) -> dict[object, str]:
    """A name for each group, unlike every other."""
    found: dict[object, str] = {}
    for key, services in groups.items():
        plain = sorted({_plain(service) for service in services})
        words = plain[0].split(".")
        choices = [words[-1], "-".join(words[-2:]), "-".join(words)]
        if isinstance(key, Program) and len(plain) > 1:
            path = PurePosixPath(key.source)
            choices = [word for word in (path.stem, path.parent.name) if word.lower() not in _EVERYDAY] + choices
        choices += [f"{choices[0]}-{number}" for number in range(2, len(groups) + 2)]
        free = (name for name in map(usable_name, choices) if name not in found.values() and name != GATEWAY)
        found[key] = next(free, f"{GATEWAY}-service")
    return found


def usable_name(text: str) -> str:
    """The nearest name that a manifest takes, e.g. `my-shop` for `My Shop`."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).lstrip("-0123456789").rstrip("-")
    return (words[:NAME_LENGTH_MAX].rstrip("-")) or "mesh"
