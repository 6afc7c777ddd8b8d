"""Small meshes that together use every extension of Envoy that our templates name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from generator.analysis import check_manifest
from generator.model import Mesh
from generator.outputs.files import default_placement
from generator.outputs.files.validation import loadable, throwaway_leaf
from generator.render import render
from generator.resources import WorkloadResources, twin
from support.meshes import DIRECTORY, REPOSITORY, repository_mesh
from support.pairs import write_pair

PROTOS = REPOSITORY / "tests" / "golden" / "in" / "protos"
MANIFEST = """
mesh: shop
protos: [{protos}]
telemetry: {{otlp: "127.0.0.1:4317"}}
zones: [here, there]
external:
  ledger: {{address: "192.0.2.1:443", tls: {{ca: edge.ca}}}}
services:
  order:
    run: ./order
    serves: [shop.v1.OrderService]
    zones: [here, there]
    calls:
      stock: [StockService/*]
    external: [ledger]
  stock:
    run: ./stock
    serves: [shop.v1.StockService]
    zones: [here, there]
    traffic: {traffic}
"""
BALANCERS: list[dict[str, Any]] = [
    {"policy": "round_robin", "slow_start": "30s"},
    {"policy": "random"},
    {"policy": "ring_hash", "hash_on": {"header": "x-shard"}},
    {"policy": "maglev", "hash_on": {"field": "name"}},
    {"policy": "weighted_round_robin"},
    {"policy": "least_request", "failover": ["there"]},
]
POLICIES: list[dict[str, Any]] = [
    {
        "adaptive_concurrency": {"min_concurrency": 3},
        "admission_control": {"success_rate_threshold": 90},
        "session_persistence": {"header": "x-session"},
    },
    {
        "session_persistence": {"cookie": {"name": "session"}},
        "max_request_bytes": 65536,
        "rate_limit": {"requests": 100, "per": "1s", "callers": {"order": {"requests": 10}}},
        "faults": {"abort": {"code": "UNAVAILABLE", "percent": 1}},
        "headers": {"request": {"set": {"x-team": "stock"}}},
    },
]


def meshes(folder: Path) -> list[Mesh]:
    """Our own mesh, and one for each balancer and each set of policies. `folder` gets what the manifests name."""
    write_pair(folder, "edge")
    found = [repository_mesh()]
    for traffic in [*({"load_balancing": balancer} for balancer in BALANCERS), *POLICIES]:
        path = folder / "mesh.yaml"
        path.write_text(MANIFEST.format(protos=PROTOS, traffic=json.dumps(traffic)), encoding="utf-8")
        analysis = check_manifest(path)
        assert analysis.mesh is not None, [str(finding) for finding in analysis.findings]
        found.append(analysis.mesh)
    return found


def policy_twins(folder: Path) -> dict[str, dict[str, Any]]:
    """The validation twins of the first replica of every service of these meshes, and of the gateway."""
    leaf = throwaway_leaf()
    return {
        f"{index}/{workload.name}": twin(workload, tuple(loadable(secret, leaf) for secret in workload.secrets))
        for index, mesh in enumerate(meshes(folder))
        for workload in firsts(mesh)
    }


def firsts(mesh: Mesh) -> list[WorkloadResources]:
    """Replicas differ in addresses only, so the first stands for all."""
    workloads = render(mesh, default_placement(mesh, DIRECTORY)).workloads
    return [workload for workload in workloads if workload.name == "gateway" or workload.name.endswith("-0")]
