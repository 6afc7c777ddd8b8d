"""Manifests of large meshes to measure with: one of services that are all alike, one of services that all differ."""

from __future__ import annotations

import random
from pathlib import Path

CALLS_EACH = 3
"""Each service of the uniform mesh calls so many others."""
CALLS_EACH_MAX = 8
METHODS_MAX = 12
SEED = 20_260_101
RPCS = (
    "rpc {name}(Message) returns (Message) {{ option idempotency_level = NO_SIDE_EFFECTS; }}",
    "rpc {name}(Message) returns (Message) {{ option idempotency_level = IDEMPOTENT; }}",
    "rpc {name}(Message) returns (Message);",
    "rpc {name}(Message) returns (stream Message);",
    "rpc {name}(stream Message) returns (Message);",
    "rpc {name}(stream Message) returns (stream Message);",
)
"""All kinds of methods; a varied service has a random choice of them."""


def first_callee(number: int, services: int) -> int:
    """The callee that each service of the uniform mesh has alone, when `services` is no multiple of 7."""
    return (number * 7 + 1) % services


def write_uniform_mesh(folder: Path, services: int, replicas: int, changed: int | None = None) -> Path:
    """A manifest of services with three methods each, which call Get of three others; its path.

    The service number `changed` has another deadline than its methods would have by themselves.
    """
    names = ["Get", "Set", "Watch"]
    rpcs = [RPCS[0].format(name="Get"), RPCS[2].format(name="Set"), RPCS[3].format(name="Watch")]
    callees = {
        number: sorted({(first_callee(number, services) + step) % services for step in range(CALLS_EACH)} - {number})
        for number in range(services)
    }
    calls = {number: dict.fromkeys(callees[number], names[:1]) for number in range(services)}
    return _write(folder, dict.fromkeys(range(services), rpcs), calls, replicas, changed)


def write_varied_mesh(folder: Path, services: int, replicas: int) -> Path:
    """A manifest of services with 1 to 12 methods of any kind, which call any methods of up to 8 others; its path."""
    chance = random.Random(SEED)
    kinds = {number: [chance.choice(RPCS) for _ in range(chance.randint(1, METHODS_MAX))] for number in range(services)}
    rpcs = {number: [rpc.format(name=f"M{place}") for place, rpc in enumerate(kinds[number])] for number in kinds}
    calls = {}
    for number in range(services):
        callees = {first_callee(number, services), *chance.choices(range(services), k=chance.randrange(CALLS_EACH_MAX))}
        calls[number] = {
            callee: sorted(f"M{place}" for place in range(len(kinds[callee])) if chance.random() < 0.5) or ["M0"]
            for callee in sorted(callees - {number})
        }
    return _write(folder, rpcs, calls, replicas, None)


def _write(
    folder: Path,
    rpcs: dict[int, list[str]],
    calls: dict[int, dict[int, list[str]]],
    replicas: int,
    changed: int | None,
) -> Path:
    protos = folder / "protos"
    protos.mkdir(parents=True, exist_ok=True)
    lines = ["mesh: large", "trust_domain: large.mesh", "protos: [protos]", "services:"]
    for number, bodies in rpcs.items():
        name, service = f"s{number}", "\n  ".join([f"service Service{number} {{", *bodies])
        (protos / f"{name}.proto").write_text(
            f'syntax = "proto3";\npackage {name}.v1;\n{service}\n}}\nmessage Message {{ string text = 1; }}\n'
        )
        lines += [
            f"  {name}:",
            "    run: serve",
            f"    serves: [{name}.v1.Service{number}]",
            f"    replicas: {replicas}",
        ]
        if number == changed:
            lines.append("    traffic: {deadline: 3s}")
        if calls[number]:
            lines.append("    calls:")
        for callee, methods in calls[number].items():
            lines.append(f"      s{callee}: [{', '.join(f'Service{callee}/{method}' for method in methods)}]")
    path = folder / "mesh.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path
