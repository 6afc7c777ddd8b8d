"""The doctor's findings, on states that tests make."""

import datetime as dt
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from generator.model import Mesh
from generator.outputs.local import doctor, inotify
from generator.outputs.local.certificates import CertificateKeeper
from generator.outputs.local.doctor import Check, Level
from generator.outputs.local.events import Journal
from generator.outputs.local.paths import StatePaths


def now() -> dt.datetime:
    """The time of the test, not of its import: a long run passes a certificate's start."""
    return dt.datetime.now(dt.UTC)


@pytest.fixture
def paths(tmp_path: Path) -> StatePaths:
    """The state of a mesh that ran once."""
    paths = StatePaths.beside(tmp_path / "mesh.yaml")
    paths.make()
    CertificateKeeper(paths, "test.mesh", 60_000, Journal()).issue("echo-0", "spiffe://test.mesh/service/echo")
    return paths


def levels(checks: list[Check]) -> list[Level]:
    return [check.level for check in checks]


def test_a_sound_machine_gets_a_line_per_check(
    tmp_path: Path, paths: StatePaths, mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inotify, "instances_used", lambda: 0)
    assert mesh.gateway is not None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    checks = list(
        doctor.examine(tmp_path / "mesh.yaml", replace(mesh, gateway=replace(mesh.gateway, listen_port=port)))
    )
    assert set(levels(checks)) == {Level.OK}
    assert len({check.subject for check in checks}) == len(checks) >= 11


def test_a_broken_manifest_is_a_failure_and_the_rest_is_still_checked(tmp_path: Path, paths: StatePaths) -> None:
    checks = list(doctor.examine(tmp_path / "mesh.yaml", None))
    assert [check.subject for check in checks if check.level is Level.FAIL] == ["manifest"]
    assert len(checks) >= 8


def test_python_versions() -> None:
    assert doctor.check_python((3, 13)).level is Level.OK
    assert doctor.check_python((3, 10)).level is Level.FAIL
    assert doctor.check_python((3, 14)).level is Level.FAIL


def test_a_clock_before_our_own_authority_is_wrong(paths: StatePaths) -> None:
    assert doctor.check_clock(now(), paths).level is Level.OK
    assert doctor.check_clock(now() - dt.timedelta(days=1), paths).level is Level.FAIL
    assert doctor.check_clock(dt.datetime(1970, 1, 1, tzinfo=dt.UTC), paths).level is Level.FAIL


def test_expired_certificates_matter_only_while_a_mesh_runs(tmp_path: Path, paths: StatePaths) -> None:
    later = now() + dt.timedelta(hours=2)
    assert set(levels(list(doctor.check_certificates(tmp_path / "mesh.yaml", paths, later)))) == {Level.OK}
    paths.current.write_text('{"pid": 1, "control": "/c", "gateway": "x"}')
    checks = list(doctor.check_certificates(tmp_path / "mesh.yaml", paths, later))
    assert levels(checks) == [Level.OK, Level.FAIL]
    assert "echo-0" in checks[1].found


def test_a_damaged_authority_is_a_failure(tmp_path: Path, paths: StatePaths) -> None:
    (path,) = paths.authorities.glob("*.crt")
    path.write_text("nonsense")
    (check,) = doctor.check_certificates(tmp_path / "mesh.yaml", paths, now())
    assert (check.level, "damaged" in check.found) == (Level.FAIL, True)


def test_a_key_that_others_may_read_is_a_failure(paths: StatePaths) -> None:
    assert doctor.check_permissions(paths).level is Level.OK
    (key,) = paths.authorities.glob("*.key")
    key.chmod(0o640)
    check = doctor.check_permissions(paths)
    assert check.level is Level.FAIL
    assert str(key) in check.found


def test_a_taken_gateway_port_is_a_failure_unless_it_is_ours(tmp_path: Path, paths: StatePaths, mesh: Mesh) -> None:
    assert mesh.gateway is not None
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        taken = replace(mesh, gateway=replace(mesh.gateway, listen_port=port))
        assert doctor.check_gateway_port(tmp_path / "mesh.yaml", taken).level is Level.FAIL
        paths.current.write_text('{"pid": 1, "control": "/c", "gateway": "127.0.0.1:%d"}' % port)  # noqa: UP031
        assert doctor.check_gateway_port(tmp_path / "mesh.yaml", taken).level is Level.OK


def test_too_few_inotify_instances_are_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mesh: Mesh) -> None:
    monkeypatch.setattr(inotify, "LIMIT", tmp_path / "limit")
    assert doctor.check_inotify(mesh, is_running=False).level is Level.WARN
    (tmp_path / "limit").write_text("100000\n")
    assert doctor.check_inotify(mesh, is_running=False).level is Level.OK
    (tmp_path / "limit").write_text("8\n")
    check = doctor.check_inotify(mesh, is_running=False)
    assert check.level is Level.FAIL
    assert "sysctl fs.inotify.max_user_instances=1024" in check.fix
    assert doctor.check_inotify(mesh, is_running=True).level is Level.OK


def test_long_names_do_not_fit_into_sockets(mesh: Mesh) -> None:
    assert doctor.check_socket_length(mesh).level is Level.OK
    long = replace(mesh, services=(replace(mesh.services[0], name="x" * 100),))
    assert doctor.check_socket_length(long).level is Level.FAIL
