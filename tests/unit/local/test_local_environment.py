"""What an application is told, and where it is put."""

import re
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from generator.analysis.files import RESERVED_VARIABLES, is_reserved
from generator.model import Cluster, Events, External, ExternalTls, Mesh, Secret, Service, SocketAddress, UnixAddress
from generator.outputs.local.environment import (
    EnvironmentFileError,
    Surroundings,
    application_command,
    application_environment,
    materialize_secrets,
    read_environment_file,
)
from generator.outputs.local.paths import (
    SOCKET_PATH_BYTES_MAX,
    SocketPathError,
    StatePaths,
    make_socket_directory,
    socket_path_length,
)
from generator.outputs.local.placing import Placer
from generator.outputs.local.ports import PortPool


def surroundings(tmp_path: Path, mesh: Mesh, outer: dict[str, str] | None = None) -> Surroundings:
    paths = StatePaths(root=tmp_path / ".nipmesh")
    paths.make()
    events = SocketAddress(host="127.0.0.1", port=4222)
    outer = outer or {"PATH": "/bin"}
    return Surroundings(mesh=mesh, paths=paths, manifest_directory=tmp_path, outer=outer, events=events)


def environment_of(tmp_path: Path, mesh: Mesh, service: Service, outer: dict[str, str] | None = None) -> dict[str, str]:
    around = surroundings(tmp_path, mesh, outer)
    pool = PortPool(tmp_path)
    placer = Placer(around.paths, tmp_path / "s", pool)
    replica = placer.place_replica(service, 1)
    secrets = materialize_secrets(service, around.paths, tmp_path)
    pool.close()
    return application_environment(around, service, replica, secrets)


def test_a_version_shares_its_services_data_and_knows_its_own_name(
    tmp_path: Path, mesh: Mesh, echo_service: Service
) -> None:
    environment = environment_of(tmp_path, mesh, replace(echo_service, name="echo-next", version_of="echo"))
    assert (environment["NIPMESH_SERVICE"], environment["NIPMESH_VERSION"]) == ("echo", "echo-next")
    assert environment["NIPMESH_DATA_DIRECTORY"].endswith("/data/echo")


def test_an_application_is_told_everything_that_it_needs(tmp_path: Path, mesh: Mesh, echo_service: Service) -> None:
    environment = environment_of(tmp_path, mesh, echo_service)
    sockets, state = tmp_path / "s" / "echo-1", tmp_path / ".nipmesh"
    assert environment == {
        "PATH": "/bin",
        "COLOUR": "red",
        "KEY_FILE": f"{state}/secrets/echo/KEY_FILE",
        "NIPMESH_MESH": "test",
        "NIPMESH_SERVICE": "echo",
        "NIPMESH_VERSION": "echo",
        "NIPMESH_REPLICA": "1",
        "NIPMESH_TRUST_DOMAIN": "test.mesh",
        "NIPMESH_LISTEN": f"unix:{sockets}/app.sock",
        "NIPMESH_METRICS_LISTEN": f"unix:{sockets}/metrics.sock",
        "NIPMESH_EGRESS": f"unix:{sockets}/egress.sock",
        "NIPMESH_AUTHORITY": "test",
        "NIPMESH_DATA_DIRECTORY": f"{state}/data/echo",
        "NIPMESH_GATEWAY_IDENTITY": "spiffe://test.mesh/gateway",
        "NIPMESH_GATEWAY_URL": "http://127.0.0.1:8080",
        "NIPMESH_CLAIM_HEADERS": "sub=x-nipmesh-subject,role=x-nipmesh-role",
        "NIPMESH_REFLECTION": "true",
        "NIPMESH_DRAIN_GRACE": "10",
        "NIPMESH_LOG_LEVEL": "info",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317",
        "OTEL_SERVICE_NAME": "echo",
        "NIPMESH_TOKEN_KEY_FILE": f"{state}/pki/token/token.key",
        "NIPMESH_TOKEN_ISSUER": "spiffe://test.mesh/service/echo",
        "NIPMESH_TOKEN_AUDIENCE": "test",
        "NIPMESH_TOKEN_LIFETIME": "900",
    }


def test_an_application_is_told_where_events_are_and_with_what_it_proves_itself(tmp_path: Path, mesh: Mesh) -> None:
    with_events = replace(mesh, events=Events(cluster=None, retention_ms=1, bytes_max=1))
    told = environment_of(tmp_path, with_events, mesh.service("echo"))
    state = tmp_path / ".nipmesh"
    assert {name: value for name, value in told.items() if "EVENTS" in name} == {
        "NIPMESH_EVENTS_URL": "tls://127.0.0.1:4222",
        "NIPMESH_EVENTS_CREDENTIALS_FILE": f"{state}/secrets/echo/events.nk",
        "NIPMESH_EVENTS_CA_FILE": f"{state}/pki/workloads/events/..data/ca.crt",
        "NIPMESH_EVENTS_STREAM": "test",
        "NIPMESH_EVENTS_INBOX": "test_echo",
    }
    cluster = Cluster(
        url="tls://a:1,b:2",
        ca=None,
        credentials=Path("/all"),
        service_credentials=(("echo", Path("/echo")),),
        admin=None,
    )
    elsewhere = replace(mesh, events=Events(cluster=cluster, retention_ms=1, bytes_max=1))
    told = environment_of(tmp_path, elsewhere, mesh.service("echo"))
    assert told["NIPMESH_EVENTS_URL"] == "tls://a:1,b:2"
    assert (told["NIPMESH_EVENTS_CREDENTIALS_FILE"], told["NIPMESH_EVENTS_CA_FILE"]) == ("/echo", "")
    assert not any("EVENTS" in name for name in environment_of(tmp_path, mesh, mesh.service("echo")))


def test_what_an_application_is_told_is_reserved_in_the_manifest(tmp_path: Path, mesh: Mesh) -> None:
    mesh = replace(mesh, events=Events(cluster=None, retention_ms=1, bytes_max=1))
    told = {name for service in mesh.services for name in environment_of(tmp_path, mesh, service)}
    own = {"PATH", "COLOUR", "KEY_FILE"}
    assert told - own == RESERVED_VARIABLES
    assert [name for name in own if is_reserved(name)] == []


def test_only_the_issuer_gets_the_token_key(tmp_path: Path, mesh: Mesh) -> None:
    environment = environment_of(tmp_path, mesh, mesh.service("foreign"))
    assert not any(name.startswith("NIPMESH_TOKEN") for name in environment)


def test_a_foreign_application_gets_ports(tmp_path: Path, mesh: Mesh) -> None:
    environment = environment_of(tmp_path, mesh, mesh.service("foreign"))
    assert environment["NIPMESH_LISTEN"] == f"127.0.0.1:{environment['PORT']}"
    assert environment["NIPMESH_EGRESS"].startswith("127.0.0.1:")


def test_the_first_replica_of_a_foreign_application_gets_the_manifests_port(tmp_path: Path, mesh: Mesh) -> None:
    pool = PortPool(tmp_path)
    placer = Placer(StatePaths(root=tmp_path / ".nipmesh"), tmp_path / "s", pool)
    first, second = (placer.place_replica(mesh.service("foreign"), index) for index in range(2))
    assert first.app == SocketAddress(host="127.0.0.1", port=9_999)
    assert second.app != first.app
    pool.close()


def test_an_application_is_told_where_to_connect_to_hosts_outside(tmp_path: Path, mesh: Mesh) -> None:
    tls = ExternalTls(server_name="db.example.org", ca=None, client=None)
    outside = External(name="app", host="db.example.org", port=5432, tls=tls, methods=())
    connected = tuple(replace(service, external_connections=("app",)) for service in mesh.services)
    mesh = replace(mesh, services=connected, externals=(outside,))
    environment = environment_of(tmp_path, mesh, mesh.service("echo"))
    assert environment["NIPMESH_EXTERNAL_APP"] == f"unix:{tmp_path}/s/echo-1/to-app.sock"
    assert environment["NIPMESH_LISTEN"] == f"unix:{tmp_path}/s/echo-1/app.sock"
    foreign = environment_of(tmp_path, mesh, mesh.service("foreign"))
    assert re.fullmatch(r"127\.0\.0\.1:\d+", foreign["NIPMESH_EXTERNAL_APP"])
    assert foreign["NIPMESH_EXTERNAL_APP"] not in {foreign["NIPMESH_LISTEN"], foreign["NIPMESH_EGRESS"]}


def test_the_outer_environment_cannot_pose_as_the_runner(tmp_path: Path, mesh: Mesh, echo_service: Service) -> None:
    outer = {"NIPMESH_SERVICE": "other", "NIPMESH_SECRET": "x", "NIPMESH_LOG_LEVEL": "debug", "HOME": "/h"}
    environment = environment_of(tmp_path, mesh, echo_service, outer)
    assert environment["NIPMESH_SERVICE"] == "echo"
    assert "NIPMESH_SECRET" not in environment
    assert environment["NIPMESH_LOG_LEVEL"] == "debug"
    assert environment["HOME"] == "/h"


def test_an_environment_file_is_below_the_manifest(tmp_path: Path, mesh: Mesh, echo_service: Service) -> None:
    file = tmp_path / "app.env"
    file.write_text("# comment\n\nCOLOUR=blue\nexport SIZE='large'\nQUERY=a=b\n")
    environment = environment_of(tmp_path, mesh, replace(echo_service, environment_file=file))
    assert (environment["COLOUR"], environment["SIZE"], environment["QUERY"]) == ("red", "large", "a=b")
    file.write_text("COLOUR\n")
    with pytest.raises(EnvironmentFileError, match=r"app\.env:1"):
        read_environment_file(file)


def test_generated_secrets_are_made_once_and_private(tmp_path: Path, mesh: Mesh, echo_service: Service) -> None:
    around = surroundings(tmp_path, mesh)
    path = materialize_secrets(echo_service, around.paths, tmp_path)["KEY_FILE"]
    content = path.read_bytes()
    assert len(content) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert materialize_secrets(echo_service, around.paths, tmp_path)["KEY_FILE"].read_bytes() == content


def test_a_secret_of_the_user_must_exist(tmp_path: Path, mesh: Mesh, echo_service: Service) -> None:
    around = surroundings(tmp_path, mesh)
    named = replace(echo_service, secrets=(Secret(variable="X_FILE", source=Path("x.key")),))
    with pytest.raises(FileNotFoundError):
        materialize_secrets(named, around.paths, tmp_path)
    (tmp_path / "x.key").write_bytes(b"x")
    assert materialize_secrets(named, around.paths, tmp_path) == {"X_FILE": tmp_path / "x.key"}


def test_python_means_this_interpreter(echo_service: Service) -> None:
    assert application_command(echo_service) == (sys.executable, "-m", "echo")
    assert application_command(replace(echo_service, command=("./run", "python"))) == ("./run", "python")


def test_a_placement_holds_private_sockets(tmp_path: Path, echo_service: Service) -> None:
    pool = PortPool(tmp_path)
    replica = Placer(StatePaths(root=tmp_path), tmp_path / "s", pool).place_replica(echo_service, 0)
    assert isinstance(replica.app, UnixAddress)
    assert stat.S_IMODE(replica.app.path.parent.stat().st_mode) == 0o700
    assert not replica.in_rotation
    pool.close()


def test_socket_folders_are_short_private_and_fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / ("x" * 80)))
    first, second = (make_socket_directory(("payment-99",)) for _ in range(2))
    assert first != second
    assert first.parent == Path("/tmp")
    assert stat.S_IMODE(first.stat().st_mode) == 0o700
    assert socket_path_length(first.parent, "payment-99") <= SOCKET_PATH_BYTES_MAX
    first.rmdir()
    second.rmdir()
    with pytest.raises(SocketPathError, match="shorter name"):
        make_socket_directory(("p" * 90,))
    with pytest.raises(SocketPathError, match="shorter name"):
        make_socket_directory(("p" * 40,), ("e" * 40,))


def test_telling_an_application_about_its_folder_makes_none(tmp_path: Path, mesh: Mesh) -> None:
    environment = environment_of(tmp_path, mesh, mesh.service("echo"))
    assert not Path(environment["NIPMESH_DATA_DIRECTORY"]).exists()
