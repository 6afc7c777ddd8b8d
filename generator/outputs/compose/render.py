"""One container per application, one per sidecar, one for the gateway and one for the server beside it.

A replica's two containers share a volume for their sockets. Endpoints are addresses by number, so each sidecar has a
fixed one in the mesh's own network.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

from generator.model import Gateway, GeneratedSecret, Mesh, Service
from generator.model.mesh import GATEWAY
from generator.model.placement import external_socket
from generator.outputs.compose.emit import emit, literal

COMPOSE_FILE = "compose.yaml"
HEADER = """\
# Rendered from the manifest by `nipmesh render --target compose`; do not edit.
# Not supported yet: `nipmesh up` is the way to run the mesh.
"""
ENVOY_IMAGE = "envoyproxy/envoy:distroless-v1.40.0"
APPLICATION_IMAGE = "nipmesh:latest"
SUBNET = ipaddress.IPv4Network("10.201.0.0/16")
GATEWAY_ADDRESS = SUBNET[10]
FIRST_REPLICA_OFFSET = 256
SOCKETS = "/run/nipmesh"
STATE = "./.nipmesh"
DRAIN_GRACE = "15s"
SIDECAR_GRACE = "20s"


def render_compose(mesh: Mesh) -> str:
    """The whole file; the same mesh always gives the same text."""
    services: dict[str, Any] = {}
    position = FIRST_REPLICA_OFFSET
    for service in mesh.services:
        for index in range(service.replicas):
            services |= _replica(mesh, service, index, str(SUBNET[position]))
            position += 1
    if mesh.gateway is not None:
        services |= _gateway(mesh.gateway)
    document: dict[str, Any] = {"name": mesh.name, "services": services}
    document["networks"] = {"mesh": {"ipam": {"config": [{"subnet": str(SUBNET)}]}}}
    document["volumes"] = {name: {} for name in _volumes(mesh)}
    secrets = {name: {"file": file} for service in mesh.services for name, file in _secret_files(service).items()}
    if secrets:
        document["secrets"] = secrets
    return HEADER + emit(document)


def _replica(mesh: Mesh, service: Service, index: int, address: str) -> dict[str, Any]:
    name = f"{service.name}-{index}"
    sidecar = {**_envoy(name, address), "stop_grace_period": SIDECAR_GRACE}
    return {name: _application(mesh, service, index), f"{name}-sidecar": sidecar}


def _application(mesh: Mesh, service: Service, index: int) -> dict[str, Any]:
    name = f"{service.name}-{index}"
    container: dict[str, Any] = {
        "image": literal(service.image or APPLICATION_IMAGE),
        "command": [literal(word) for word in service.command],
        "environment": {key: literal(value) for key, value in _environment(mesh, service, index).items()},
        "depends_on": {f"{name}-sidecar": {"condition": "service_started"}},
        # A Unix socket is all the network that it needs; one on loopback shares its sidecar's.
        "network_mode": "none" if service.listen_port is None else f"service:{name}-sidecar",
        "volumes": [f"{name}-sockets:{SOCKETS}", f"{service.role}-data:/var/lib/nipmesh"],
        "stop_grace_period": DRAIN_GRACE,
        "restart": "unless-stopped",
    }
    if service.environment_file is not None:
        container["env_file"] = [literal(str(service.environment_file))]
    if service.working_directory is not None:
        container["working_dir"] = literal(str(service.working_directory))
    if service.secrets:
        container["secrets"] = list(_secret_files(service))
    return container


def _environment(mesh: Mesh, service: Service, index: int) -> dict[str, str]:
    listens = f"unix:{SOCKETS}/app.sock" if service.listen_port is None else f"127.0.0.1:{service.listen_port}"
    own = {
        "NIPMESH_MESH": mesh.name,
        "NIPMESH_SERVICE": service.role,
        "NIPMESH_VERSION": service.name,
        "NIPMESH_REPLICA": str(index),
        "NIPMESH_TRUST_DOMAIN": mesh.trust_domain,
        "NIPMESH_LISTEN": listens,
        "NIPMESH_METRICS_LISTEN": f"unix:{SOCKETS}/metrics.sock",
        "NIPMESH_EGRESS": f"unix:{SOCKETS}/egress.sock",
        **{
            mesh.external(name).variable: f"unix:{SOCKETS}/{external_socket(name)}"
            for name in service.external_connections
        },
        "NIPMESH_AUTHORITY": mesh.name,
        "NIPMESH_DATA_DIRECTORY": "/var/lib/nipmesh",
    }
    if service.listen_port is not None:
        own["PORT"] = str(service.listen_port)
    if mesh.gateway is not None:
        own["NIPMESH_GATEWAY_IDENTITY"] = mesh.gateway.identity
        own["NIPMESH_GATEWAY_URL"] = mesh.gateway.public_url
    secrets = {secret.variable: f"/run/secrets/{_secret_name(service, secret.variable)}" for secret in service.secrets}
    return {**dict(service.environment), **own, **secrets}


def _envoy(workload: str, address: str) -> dict[str, Any]:
    return {
        "image": ENVOY_IMAGE,
        "command": [
            *("--config-path", f"/etc/nipmesh/envoy/{workload}/bootstrap.json"),
            *("--concurrency", "1", "--disable-hot-restart", "--reject-unknown-dynamic-fields"),
        ],
        "networks": {"mesh": {"ipv4_address": address}},
        "volumes": [
            f"{STATE}/compose/envoy/{workload}:/etc/nipmesh/envoy/{workload}:ro",
            f"{STATE}/compose/certificates/{workload}:/etc/nipmesh/certificates/{workload}:ro",
            f"{workload}-sockets:{SOCKETS}",
        ],
        "restart": "unless-stopped",
    }


def _gateway(gateway: Gateway) -> dict[str, Any]:
    envoy = _envoy(GATEWAY, str(GATEWAY_ADDRESS))
    host = f"[{gateway.listen_host}]" if ":" in gateway.listen_host else gateway.listen_host
    envoy["ports"] = [f"{host}:{gateway.listen_port}:{gateway.listen_port}"]
    envoy["depends_on"] = {"introspection": {"condition": "service_started"}}
    reflection = ["--reflection"] if gateway.reflection else []
    introspection = {
        "image": APPLICATION_IMAGE,
        "command": [
            *("python", "-m", "generator.introspection", "--listen", f"unix:{SOCKETS}/introspection.sock"),
            *("--descriptor-set", "/etc/nipmesh/introspection/descriptors.binpb"),
            *("--methods", "/etc/nipmesh/introspection/exposure.json", "--admin", f"{SOCKETS}/admin.sock"),
            *reflection,
        ],
        "network_mode": "none",
        "volumes": [
            f"{STATE}/compose/introspection:/etc/nipmesh/introspection:ro",
            f"{GATEWAY}-sockets:{SOCKETS}",
        ],
        "restart": "unless-stopped",
    }
    return {GATEWAY: envoy, "introspection": introspection}


def _volumes(mesh: Mesh) -> list[str]:
    names = [f"{service.name}-{index}-sockets" for service in mesh.services for index in range(service.replicas)]
    names += [f"{service.name}-data" for service in mesh.services if service.version_of is None]
    return [*names, f"{GATEWAY}-sockets"] if mesh.gateway is not None else names


def _secret_files(service: Service) -> Mapping[str, str]:
    files = {}
    for secret in service.secrets:
        generated = f"{STATE}/secrets/{service.name}/{secret.variable}"
        source = generated if isinstance(secret.source, GeneratedSecret) else str(secret.source)
        files[_secret_name(service, secret.variable)] = literal(source)
    return files


def _secret_name(service: Service, variable: str) -> str:
    return f"{service.name}-{variable.lower().replace('_', '-')}"
