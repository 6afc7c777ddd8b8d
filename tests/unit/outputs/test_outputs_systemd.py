"""Units say what the description says, in systemd's own words, and are as closed as they can be."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generator.model import Gateway, Mesh, Probe, Resources, Service, Volume
from generator.outputs.systemd import Layout, Machine, Programs, PublicKeys, machine_of, tree, write_tree
from generator.outputs.systemd.layout import USER_LENGTH_MAX, user_of
from generator.outputs.systemd.units import units
from generator.outputs.systemd.words import argument, command, literal, quoted, word
from generator.outputs.workloads import Part, describe
from support.meshes import repository_mesh
from support.units import Unit, words

PROGRAMS = Programs.below(Path("/opt/nipmesh/bin"))
LAYOUT = Layout(project=Path("/srv/mesh"), programs=PROGRAMS)
EXPOSURE_MAX, EXPOSURE_OF_ROOT_MAX = 2.0, 3.0
"""Of ten, by `systemd-analyze security`; most of what is left is the network. Renewal is root's: it gives files to users."""
ANALYZE_S = 60


def machine(mesh: Mesh | None = None, layout: Layout = LAYOUT) -> Machine:
    return machine_of(mesh or repository_mesh(), layout, None, None, PublicKeys())


def changed(**fields: object) -> Mesh:
    """The repository's mesh with another nip service."""
    mesh = repository_mesh()
    services = (replace(one, **fields) if one.name == "nip" else one for one in mesh.services)  # type: ignore[arg-type]
    return replace(mesh, services=tuple(services))


def read(tmp_path: Path, mesh: Mesh, name: str) -> Unit:
    (tmp_path / name).write_text(units(machine(mesh))[name])
    return Unit.read(tmp_path / name)


@given(st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=40))
def test_a_word_is_read_as_it_was_meant(text: str) -> None:
    assert words(word(literal(text)), Path("/c")) == [text]
    (found,) = words(argument(literal(text)), Path("/c"))
    assert found.replace("$$", "$") == text
    assert "\n" not in word(text)


def test_words_keep_to_themselves() -> None:
    line = command(("/bin/echo", literal("50% of $5"), "%d/KEY", 'say "hi"', ""))
    assert line == '/bin/echo "50%% of $$5" %d/KEY "say \\"hi\\"" ""'
    assert words(line, Path("/c"))[1:3] == ["50% of $$5", "/c/KEY"]
    assert quoted('a"b\\c$d`e') == '"a\\"b\\\\c\\$d\\`e"'


def test_every_process_has_a_unit_and_waits_for_what_it_needs(tmp_path: Path) -> None:
    mesh = repository_mesh()
    found = units(machine())
    processes = describe(mesh)
    assert {f"nipmesh-{process.name}.service" for process in processes} <= found.keys()
    for process in processes:
        unit = read(tmp_path, mesh, f"nipmesh-{process.name}.service")
        before = {f"nipmesh-{name}.service" for name in process.before}
        assert before <= unit.after
        assert not unit.all("Requires"), "a sidecar that is restarted takes no application along"
        assert not unit.all("BindsTo")
        assert unit.one("Restart") == "always"
        wanted = unit.all("Wants")
        assert before <= set(" ".join(wanted).split())
    (wants,) = read(tmp_path, mesh, "nipmesh.target").all("Wants")
    assert set(wants.split()) == found.keys() - {"nipmesh.target", "nipmesh-certificates.service"}


def test_users_differ_so_that_nobody_reads_anothers_keys(tmp_path: Path) -> None:
    owners: dict[str, set[str]] = {}
    for process in describe(repository_mesh()):
        unit = read(tmp_path, repository_mesh(), f"nipmesh-{process.name}.service")
        owners.setdefault(unit.one("User"), set()).add(process.service or process.part.value)
    assert owners == {
        "nipmesh-nip": {"nip"},
        "nipmesh-invoice": {"invoice"},
        "nipmesh-payment": {"payment"},
        "nipmesh-gateway": {"gateway", "introspection"},
        "nipmesh-events": {"events"},
    }


def test_users_of_long_names_are_short_and_differ() -> None:
    names = ["a" * 40, "a" * 39 + "b", "short"]
    users = [user_of(name) for name in names]
    assert len(set(users)) == 3
    assert all(len(user) <= USER_LENGTH_MAX for user in users)
    assert users[2] == "nipmesh-short"


def test_secrets_are_credentials_and_no_variable_holds_one(tmp_path: Path) -> None:
    unit = read(tmp_path, repository_mesh(), "nipmesh-nip-1.service")
    loaded = dict(value.split(":", 1) for value in unit.all("LoadCredential"))
    assert loaded == {
        "NIP_KEYSTORE_KEY_FILE": "/var/lib/nipmesh/secrets/nip/NIP_KEYSTORE_KEY_FILE",
        "NIPMESH_TOKEN_KEY_FILE": "/var/lib/nipmesh/pki/token/token.key",
        "NIPMESH_EVENTS_CREDENTIALS_FILE": "/var/lib/nipmesh/secrets/nip/events.nk",
    }
    environment = dict(value.split("=", 1) for value in unit.all("Environment"))
    assert {name: environment[name] for name in loaded} == {name: f"%d/{name}" for name in loaded}
    assert environment["NIPMESH_EVENTS_CA_FILE"] == "/var/lib/nipmesh/trust/ca.crt"
    issuer = [read(tmp_path, repository_mesh(), f"nipmesh-{name}-0.service") for name in ("invoice", "payment")]
    assert not any("TOKEN_KEY" in value for unit in issuer for value in unit.all("LoadCredential"))


def test_what_the_manifest_asks_for_is_there(tmp_path: Path) -> None:
    volumes = (
        Volume(source="cache", target=PurePosixPath("/var/cache/x y")),
        Volume(source=Path("/srv/rates"), target=PurePosixPath("/etc/rates"), is_read_only=True),
    )
    mesh = changed(
        volumes=volumes,
        resources=Resources(cpu_millis=1_500, memory_bytes=256 * 1024 * 1024),
        command=("./bin/nip", "--price", "5$", "%"),
        working_directory=Path("/srv/mesh/nip"),
        environment_file=Path("/srv/mesh/nip.env"),
        environment=(("GREETING", 'say "hi" for $5'),),
    )
    unit = read(tmp_path, mesh, "nipmesh-nip-0.service")
    assert unit.one("ExecStart") == '/srv/mesh/nip/bin/nip --price "5$$" %%'
    assert (unit.one("CPUQuota"), unit.one("MemoryMax")) == ("150%", "268435456")
    assert unit.all("BindPaths") == ['"/var/lib/nipmesh/volumes/cache:/var/cache/x y"']
    assert unit.all("BindReadOnlyPaths") == ["/srv/rates:/etc/rates"]
    assert (unit.one("SupplementaryGroups"), unit.one("UMask")) == ("nipmesh-volumes", "0007")
    own = "/etc/nipmesh/environment/nip.env"
    assert unit.all("EnvironmentFile") == ["/srv/mesh/nip.env", own], "the manifest's variables win, and stand last"
    files = tree(machine(mesh), PublicKeys())
    assert files[Path(own)] == b'GREETING="say \\"hi\\" for \\$5"\n'
    assert not any(value.startswith("GREETING") for value in unit.all("Environment"))
    assert b"d /var/lib/nipmesh/volumes/cache 2770 root nipmesh-volumes -" in files[LAYOUT.folders]
    assert b"g nipmesh-volumes -" in files[LAYOUT.users]


@pytest.mark.parametrize(("port", "capability"), [(443, "CAP_NET_BIND_SERVICE"), (1_024, "")])
def test_a_low_port_costs_one_capability(tmp_path: Path, port: int, capability: str) -> None:
    mesh = repository_mesh()
    assert isinstance(mesh.gateway, Gateway)
    unit = read(tmp_path, replace(mesh, gateway=replace(mesh.gateway, listen_port=port)), "nipmesh-gateway.service")
    assert unit.one("CapabilityBoundingSet") == unit.one("AmbientCapabilities") == capability


@pytest.mark.parametrize(("project", "home"), [("/srv/mesh", "yes"), ("/home/eve/mesh", "read-only")])
def test_homes_are_out_of_sight_unless_the_project_is_in_one(tmp_path: Path, project: str, home: str) -> None:
    found = units(machine(layout=Layout(project=Path(project), programs=PROGRAMS)))
    (tmp_path / "a.service").write_text(found["nipmesh-nip-0.service"])
    assert Unit.read(tmp_path / "a.service").one("ProtectHome") == home


def test_another_machines_authority_signs_where_the_option_says_so(tmp_path: Path) -> None:
    signed = replace(machine(), signer="ssh authority nipmesh certificates sign")
    (tmp_path / "a.service").write_text(units(signed)["nipmesh-certificates.service"])
    found = words(Unit.read(tmp_path / "a.service").one("ExecStart"), Path())
    assert found[-2:] == ["--signer", "ssh authority nipmesh certificates sign"]


def test_files_are_written_once_for_everybody_to_read_and_old_units_go(tmp_path: Path) -> None:
    first = write_tree(machine(), PublicKeys(), tmp_path)
    assert len(first) > 50
    for path in tmp_path.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644), path
    assert write_tree(machine(), PublicKeys(), tmp_path) == []
    (tmp_path / "etc/systemd/system/nipmesh-mine.service").write_text("[Service]\nExecStart=/bin/true\n")
    gone = write_tree(machine(changed(replicas=1)), PublicKeys(), tmp_path)
    names = {str(path.relative_to(tmp_path)) for path in gone}
    assert {"etc/systemd/system/nipmesh-nip-1.service", "etc/nipmesh/envoy/nip-1"} <= names
    assert not (tmp_path / "etc/systemd/system/nipmesh-nip-1-sidecar.service").exists()
    assert (tmp_path / "etc/systemd/system/nipmesh-mine.service").exists(), "what is not ours stays"


def test_nobody_calls_a_replica_that_leaves(tmp_path: Path) -> None:
    write_tree(machine(), PublicKeys(), tmp_path)
    endpoints = tmp_path / "etc/nipmesh/envoy/gateway/eds/outbound_nip.json"
    both = re.findall(r'"port_value":(\d+)', endpoints.read_text())
    moved = write_tree(machine().without({"nip-1"}), PublicKeys(), tmp_path)
    assert endpoints in moved
    assert len(both) == 2
    assert re.findall(r'"port_value":(\d+)', endpoints.read_text()) == both[:1]


def test_every_part_of_a_mesh_is_known() -> None:
    assert {process.part for process in describe(repository_mesh())} == set(Part)


def test_probes_have_no_place_in_units() -> None:
    """What `nipmesh render` says of it: see the tests of the command line."""
    other = changed(probe=Probe(interval_ms=5_000))
    assert units(machine(other)) == units(machine())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Units whose programs exist: `verify` looks for them."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not on this machine")
    folder = tmp_path_factory.mktemp("units")
    true = Path("/bin/true")
    layout = Layout(project=folder, programs=Programs(python=true, nipmesh=true, envoy=true, nats=true))
    mesh = changed(
        volumes=(Volume(source="cache", target=PurePosixPath("/var/cache/x")),), environment=(("A", 'b"\\%'),)
    )
    for name, text in units(machine(mesh, layout)).items():
        (folder / name).write_text(text)
    return folder


def analyze(*arguments: str) -> Callable[[Path], subprocess.CompletedProcess[str]]:
    def run(folder: Path) -> subprocess.CompletedProcess[str]:
        names = sorted(str(path) for path in folder.iterdir() if path.suffix in (".service", ".timer", ".target"))
        command = ["systemd-analyze", *arguments, *names]
        environment = {"PATH": "/usr/bin:/bin", "SYSTEMD_UNIT_PATH": f"{folder}:"}
        return subprocess.run(command, capture_output=True, text=True, timeout=ANALYZE_S, check=False, env=environment)

    return run


def test_systemd_finds_nothing_wrong_with_the_units(written: Path) -> None:
    done = analyze("verify", "--man=no")(written)
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "nipmesh" in line]
    assert not ours
    broken = written / "nipmesh-broken.service"
    broken.write_text("[Service]\nExecStart=/bin/true\nProtectSytem=strict\n")
    try:
        done = analyze("verify", "--man=no")(written)
        assert "ProtectSytem" in done.stderr, "a misspelt setting would be found"
    finally:
        broken.unlink()


def test_units_are_as_closed_as_they_can_be(written: Path) -> None:
    names = sorted(str(path) for path in written.glob("*.service"))
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=ANALYZE_S, check=False)
    found = re.findall(r"exposure level for (\S+): (\d+\.\d+)", done.stdout)
    if not found:
        pytest.skip(f"systemd-analyze cannot judge files here: {done.stderr[:200]}")
    assert len(found) == len(describe(repository_mesh())) + 2
    levels = {name: float(level) for name, level in found}
    assert levels.pop("nipmesh-certificates.service") <= EXPOSURE_OF_ROOT_MAX
    assert {name: level for name, level in levels.items() if level > EXPOSURE_MAX} == {}


def test_a_foreign_application_is_told_its_port(tmp_path: Path) -> None:
    def listening(service: Service) -> Service:
        return replace(service, listen_port=9_000)

    mesh = repository_mesh()
    services = tuple(listening(one) if one.name == "nip" else one for one in mesh.services)
    ports = []
    for index in (0, 1):
        unit = read(tmp_path, replace(mesh, services=services), f"nipmesh-nip-{index}.service")
        environment = dict(value.split("=", 1) for value in unit.all("Environment"))
        ports.append(environment["PORT"])
        assert environment["NIPMESH_LISTEN"] == f"127.0.0.1:{environment['PORT']}"
    assert ports[0] == "9000"
    assert ports[1] != "9000"
