"""Names that appear in the configuration: clusters, listeners, headers, files."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

LISTENER_INBOUND = "inbound"
LISTENER_EGRESS = "egress"
LISTENER_SCRAPE = "scrape"
LISTENER_GATEWAY = "gateway"
CLUSTER_APPLICATION = "application"
CLUSTER_APPLICATION_METRICS = "application_metrics"
CLUSTER_ADMIN = "envoy_admin"
CLUSTER_INTROSPECTION = "introspection"
CLUSTER_TELEMETRY = "telemetry"
SECRET_LEAF = "leaf"  # noqa: S105  # a name
SECRET_AUTHORITY = "authority"  # noqa: S105  # a name
SECRET_EDGE = "edge"  # noqa: S105  # a name

NOT_DELIVERED_HEADER = "x-nipmesh-not-delivered"
"""Set by the callee's sidecar on its own answers when the application has seen nothing of the call."""
NOT_DELIVERED = "true"
RESET_HEADER = "x-nipmesh-reset"
"""Set by the callee's sidecar on its own answers when the application may have done its work: what broke, one of these."""
RESET_CONNECTION = "connection"
RESET_STREAM = "stream"
STATUS_HEADER = "x-nipmesh-status"
"""Set by the callee's sidecar: what an answer that is nothing but a status says about another attempt. Four values with `;`
between them, nothing for what is not there: the gRPC status, the mark of a failed dependency, the push-back, the wait in seconds."""
DEPENDENCY_FAILED_HEADER = "x-nipmesh-dependency-failed"
"""Set by an application on UNAVAILABLE that stems from a service it calls: its callers do not repeat such a call."""
PUSH_BACK_HEADER = "grpc-retry-pushback-ms"
"""Set by an application: in how many ms the call may be repeated; negative or no number: not at all (gRFC A6)."""
WAIT_HEADER = "retry-after"
"""Set by an application beside a push-back of a second or more: the same in whole seconds, which is all that Envoy waits by."""
LOAD_HEADER = "endpoint-load-metrics"
"""Set by an application: how busy it is (ORCA), as text or, with `-bin` after it, as bytes. Callers' sidecars weigh replicas by it."""
OWN_RESPONSE_HEADERS = (NOT_DELIVERED_HEADER, RESET_HEADER, STATUS_HEADER)
HASH_HEADER = "x-nipmesh-hash"
"""Set by the caller's sidecar: the field of the request by which the replica is chosen."""
HEALTH_PATH = "/grpc.health.v1.Health/Check"
INTROSPECTION_HEALTH = "/grpc.health.v1.Health/"
INTROSPECTION_REFLECTION = ("/grpc.reflection.v1.ServerReflection/", "/grpc.reflection.v1alpha.ServerReflection/")

XDS_FOLDERS = {"listeners": "lds", "clusters": "cds", "routes": "rds", "endpoints": "eds", "secrets": "sds"}
FILES_MAX = 4_096
"""Paths that are remembered: while a workload is made, each is asked for several times."""


def cluster_name(service: str) -> str:
    """Name the cluster of a service in its callers' sidecars and in the gateway."""
    return f"outbound_{service}"


def external_name(external: str) -> str:
    """Name the cluster, and of hosts that speak no gRPC the listener, of a host outside."""
    return f"external_{external}"


def authority(service: str, trust_domain: str) -> str:
    """Name the `:authority` and SNI of calls to a service."""
    return f"{service}.{trust_domain}"


@lru_cache(FILES_MAX)
def workload_file(directory: Path, workload: str, kind: str, name: str | None = None) -> Path:
    """Name the file of a workload's resources.

    `kind` is a key of `XDS_FOLDERS`. Listeners and clusters share one file per kind; of the other kinds Envoy takes
    exactly one resource from a file, so each has its own, by `name`.
    """
    folder = XDS_FOLDERS[kind]
    return directory / workload / folder / f"{folder if name is None else name}.json"
