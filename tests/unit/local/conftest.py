"""A small mesh in its resolved form."""

from dataclasses import replace
from pathlib import Path

import pytest

from generator.model import (
    Authentication,
    Balancer,
    CircuitBreaker,
    Gateway,
    GeneratedSecret,
    HealthCheck,
    Keepalive,
    LoadBalancing,
    Mesh,
    OutlierDetection,
    Secret,
    Service,
    Telemetry,
    TrafficPolicy,
)

TRAFFIC = TrafficPolicy(
    load_balancing=LoadBalancing(
        balancer=Balancer.LEAST_REQUEST,
        hash_on=None,
        weights=(),
        slow_start_ms=None,
        panic_threshold_percent=0,
        failover=(),
    ),
    outlier_detection=OutlierDetection(
        consecutive_errors=5,
        consecutive_gateway_errors=5,
        success_rate=None,
        failure_percentage=None,
        interval_ms=1000,
        base_ejection_ms=1000,
        ejection_ms_max=1000,
        ejection_jitter_ms=0,
        ejection_percent_max=50,
        always_eject_one=True,
    ),
    circuit_breaker=CircuitBreaker(
        connections_max=1,
        pending_requests_max=1,
        requests_max=1,
        streams_max=1,
        retry_budget_percent=20,
        retry_concurrency_min=3,
    ),
    health_check=HealthCheck(interval_ms=1000, timeout_ms=500, healthy_threshold=1, unhealthy_threshold=2),
    keepalive=Keepalive(interval_ms=30_000, timeout_ms=5_000),
    request_bytes_max=1024,
    connection_duration_ms_max=60_000,
    session=None,
    adaptive_concurrency=None,
    admission_control=None,
)


@pytest.fixture
def echo_service() -> Service:
    return Service(
        name="echo",
        identity="spiffe://test.mesh/service/echo",
        command=("python", "-m", "echo"),
        methods=(),
        replicas=2,
        version_of=None,
        zones=(),
        calls=(),
        callers=(),
        external_calls=(),
        external_connections=(),
        consumes=(),
        traffic=TRAFFIC,
        listen_port=None,
        environment=(("COLOUR", "red"),),
        environment_file=None,
        secrets=(Secret(variable="KEY_FILE", source=GeneratedSecret(bytes_count=32)),),
        working_directory=None,
        image=None,
    )


@pytest.fixture
def mesh(echo_service: Service) -> Mesh:
    authentication = Authentication(
        issuer=echo_service.identity,
        issuer_service="echo",
        audience="test",
        jwks_file=None,
        public=(),
        roles=(),
        claim_headers=(("sub", "x-nipmesh-subject"), ("role", "x-nipmesh-role")),
    )
    return Mesh(
        name="test",
        trust_domain="test.mesh",
        certificate_lifetime_ms=3_600_000,
        services=(echo_service, replace(echo_service, name="foreign", listen_port=9_999, secrets=())),
        gateway=Gateway(
            identity="spiffe://test.mesh/gateway",
            listen_host="127.0.0.1",
            listen_port=8080,
            tls=None,
            public_url="http://127.0.0.1:8080",
            authentication=authentication,
            reflection=True,
            exposes=(),
            zone=None,
        ),
        externals=(),
        telemetry=Telemetry(otlp_host="127.0.0.1", otlp_port=4317),
        events=None,
        descriptor_set=b"",
    )


@pytest.fixture
def short_folder(tmp_path: Path) -> Path:
    """A folder whose path leaves room for sockets."""
    folder = tmp_path / "s"
    folder.mkdir()
    return folder
