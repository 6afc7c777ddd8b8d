"""The manifest of a plan, with comments that say what stands there, what is a default, and what is left to do."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from generator.manifest.finding import printable
from generator.manifest.placeholder import RUN_PLACEHOLDER
from generator.model import defaults
from generator.scaffold.plan import Plan, PlannedService

LINE_LENGTH_MAX = 100
"""Longer lists are written one entry a line."""
_PLAIN = re.compile(r"\.|(\./)?[A-Za-z_/]([A-Za-z0-9 ./_-]*[A-Za-z0-9./_])?")
_WORDS_OF_YAML = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
HEAD = """\
# This mesh, as `nipmesh init` found it. `nipmesh check` says what is wrong, `nipmesh explain` what each default is and why,
# `nipmesh up` runs it. `nipmesh schema --reference` prints every key; `nipmesh schema` is for your editor.
"""
SERVICES = """
# Each replica is told where to listen by NIPMESH_LISTEN: a Unix socket that only its sidecar can reach. A program that needs TCP
# has `listen`, and finds its port in PORT. Who calls another service says so: `calls: {orders: [OrderService/GetOrder]}`.
services:
"""
GATEWAY = """
# The one way in from outside. Inside, everything is mTLS, and what no `calls` lists is denied.
gateway:
  listen: {listen}
  reflection: true   # for development: grpcurl and others may ask what there is
  # authentication: {{issuer: https://issuer.example.org, jwks: jwks.json}}   # without it everything exposed is open
  expose:
"""


def manifest_text(plan: Plan) -> str:
    """Write it."""
    lines = [HEAD, f"mesh: {scalar(plan.mesh)}\n", "# Folders with .proto files; their imports start there.\n"]
    lines += [f"protos: [{', '.join(scalar(root) for root in plan.protos)}]\n", SERVICES]
    for service in plan.services:
        lines += [f"{line}\n" for line in _service(service, plan)]
    lines += [GATEWAY.format(listen=defaults.GATEWAY_LISTEN), *(f"{line}\n" for line in _exposed(plan))]
    return "".join(lines)


def scalar(text: str) -> str:
    """A text as YAML reads it back, in quotes only where it must."""
    return (
        text if _PLAIN.fullmatch(text) and text.lower() not in _WORDS_OF_YAML else json.dumps(text, ensure_ascii=False)
    )


def _shown(names: tuple[str, ...]) -> str:
    """Names of files for a comment, which a strange one cannot end."""
    return printable(", ".join(names))


def _service(service: PlannedService, plan: Plan) -> Iterator[str]:
    yield f"  {scalar(service.name)}:   # {_shown(service.files)}"
    yield from (f"    {line}" for line in _run(service))
    yield from _listed("    serves", service.serves)
    yield f"    replicas: {defaults.REPLICAS}   # the default: one may die"
    yield from _listen(service)
    yield from _calls(service, plan)


def _run(service: PlannedService) -> Iterator[str]:
    program = service.program
    if service.command:
        yield f"run: {scalar(service.command)}"
    elif program is not None:
        yield f"run: {scalar(program.run)}   # {printable(program.source)} serves it"
        if program.cwd:
            yield f"cwd: {scalar(program.cwd)}"
    else:
        if service.candidates:
            yield f"# Several programs serve this: {_shown(service.candidates)}."
        yield f"run: {RUN_PLACEHOLDER}   # one replica, e.g. `python server.py`; no shell interprets it"


def _listen(service: PlannedService) -> Iterator[str]:
    program = service.program
    if program is not None and service.needs_port:
        yield f"    listen: 127.0.0.1:{service.port}   # {printable(program.source)} reads PORT; each replica gets one of its own"
    elif program is None or not program.reads_listen:
        yield f"    # listen: 127.0.0.1:{service.port}"


def _calls(service: PlannedService, plan: Plan) -> Iterator[str]:
    if not service.calls:
        return
    yield "    calls:   # its program makes clients of these; name the methods that it needs, the rest is denied"
    served = {other.name: other.serves for other in plan.services}
    for callee, names in service.calls:
        yield from _listed(f"      {scalar(callee)}", _every_method(names, served[callee]))


def _exposed(plan: Plan) -> Iterator[str]:
    inside = plan.called
    outside = [service for service in plan.services if not inside.issuperset(service.serves)]
    for service in plan.services:
        names = [name for name in service.serves if name not in inside or not outside]
        if names:
            yield from _listed(f"    {scalar(service.name)}", _every_method(names, service.serves))
        else:
            yield f"    # {service.name} is called from inside only"


def _every_method(names: Iterable[str], served: tuple[str, ...]) -> tuple[str, ...]:
    """`OrderService/*`, with the package only where the short name is not enough."""
    counts = Counter(name.rpartition(".")[2] for name in served)
    simple = {name: name.rpartition(".")[2] for name in names}
    return tuple(f"{short if counts[short] == 1 else name}/*" for name, short in simple.items())


def _listed(key: str, items: tuple[str, ...]) -> Iterator[str]:
    line = f"{key}: [{', '.join(items)}]"
    if len(line) <= LINE_LENGTH_MAX:
        yield line
        return
    yield f"{key}:"
    indent = " " * (len(key) - len(key.lstrip()) + 2)
    yield from (f"{indent}- {item}" for item in items)
