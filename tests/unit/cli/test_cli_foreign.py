"""The commands on a mesh of another team: proto2, an edition, no package, no version, names that provoke trouble."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import FieldDescriptor

from generator.analysis import check_manifest
from generator.cli.main import main
from generator.model import Idempotency, Mesh, Method, RetryCondition, StreamingKind
from support.foreign import FOREIGN

MANIFEST = str(FOREIGN / "mesh.yaml")
PROVEN = frozenset({RetryCondition.NOT_DELIVERED})


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["--file", MANIFEST, *arguments], prog_name="nipmesh")


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    analysis = check_manifest(FOREIGN / "mesh.yaml")
    assert analysis.mesh is not None, [str(finding) for finding in analysis.findings]
    return analysis.mesh


def test_check_counts_it_and_warns_of_what_it_gives_up() -> None:
    result = run("check", "--no-envoy")
    assert result.exit_code == 0
    assert "mesh courier: 6 services, 7 replicas, 25 methods, 14 methods called inside, 15 exposed" in result.output
    assert [line.split()[1] for line in result.output.splitlines() if ": warning" in line] == [
        "warning[NM313]",
        "warning[NM406]",
    ]


def test_the_mesh_has_every_kind_of_method(mesh: Mesh) -> None:
    methods = [method for service in mesh.services for method in service.methods]
    assert {method.streaming for method in methods} == set(StreamingKind)
    unary = [method for method in methods if method.streaming is StreamingKind.UNARY]
    assert {method.idempotency for method in unary} == set(Idempotency)


@pytest.mark.parametrize(
    ("path", "streaming", "idempotency"),
    [
        ("/CustomsDesk/Declare", StreamingKind.UNARY, Idempotency.UNKNOWN),
        ("/CustomsDesk/Arrive", StreamingKind.UNARY, Idempotency.IDEMPOTENT),
        ("/courier.delivery.v1.ReturnsService/return", StreamingKind.UNARY, Idempotency.UNKNOWN),
        ("/courier.tracking.TrackingService/Follow", StreamingKind.SERVER, Idempotency.NO_SIDE_EFFECTS),
        ("/courier.tracking.TrackingService/Report", StreamingKind.CLIENT, Idempotency.UNKNOWN),
        ("/courier.sorting.v1.SortingService/Sort", StreamingKind.BIDIRECTIONAL, Idempotency.UNKNOWN),
    ],
)
def test_methods_are_what_their_protos_say(
    mesh: Mesh, path: str, streaming: StreamingKind, idempotency: Idempotency
) -> None:
    method = found(mesh, path)
    assert (method.streaming, method.idempotency) == (streaming, idempotency)


def found(mesh: Mesh, path: str) -> Method:
    (method,) = (method for service in mesh.services for method in service.methods if method.path == path)
    return method


def test_only_what_may_run_twice_is_repeated(mesh: Mesh) -> None:
    policies = [policy for service in mesh.services for edge in service.callers for policy in edge.methods]
    assert policies
    for policy in policies:
        conditions = policy.retry.conditions if policy.retry is not None else frozenset()
        if policy.method.streaming is not StreamingKind.UNARY:
            assert conditions == frozenset()
        elif policy.method.idempotency is Idempotency.UNKNOWN:
            assert conditions == PROVEN
        else:
            assert conditions > PROVEN


@pytest.mark.parametrize(
    ("subject", "heading"),
    [
        ("delivery/return", "delivery/courier.delivery.v1.ReturnsService/return"),
        ("customs/Declare", "customs/CustomsDesk/Declare"),
        ("customs/CustomsDesk/Declare", "customs/CustomsDesk/Declare"),
        ("tracking/TrackingService/Follow", "tracking/courier.tracking.TrackingService/Follow"),
        ("sorting/LabelService/Print", "sorting/courier.sorting.v1.LabelService/Print"),
    ],
)
def test_explain_finds_each_method(subject: str, heading: str) -> None:
    result = run("explain", subject)
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [heading]
    assert any(line.split()[0] == "deadline_ms" for line in lines[1:])


def test_explain_names_the_line_of_what_was_written() -> None:
    line = next(
        number for number, text in enumerate(Path(MANIFEST).read_text().splitlines(), 1) if "idle_timeout" in text
    )
    assert f"line {line} of the manifest" in run("explain", "delivery/FollowParcel").output


def test_descriptors_load_and_hold_what_clients_need(tmp_path: Path) -> None:
    output = tmp_path / "courier.binpb"
    assert run("descriptors", "--output", str(output)).exit_code == 0
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(output.read_bytes()).file:
        pool.Add(file)
    assert pool.FindServiceByName("CustomsDesk").methods_by_name.keys() == ["Declare", "Classify", "Arrive"]
    assert pool.FindServiceByName("courier.tracking.TrackingService").methods_by_name.keys() == ["GetHistory"]
    declaration = pool.FindMessageTypeByName("Declaration")
    assert declaration.fields_by_name["waybill"].is_required
    assert {field.number for field in pool.FindAllExtensions(declaration)} == {100, 101}
    scan = pool.FindMessageTypeByName("courier.tracking.Scan")
    assert scan.fields_by_name["position"].type == FieldDescriptor.TYPE_GROUP
    assert (scan.fields_by_name["note"].has_presence, scan.fields_by_name["waybill"].has_presence) == (True, False)
    with pytest.raises(KeyError):
        pool.FindServiceByName("courier.tariff.v1.TariffService")
    with pytest.raises(KeyError):
        pool.FindServiceByName("courier.sorting.v1.SortingService")


def test_compose_needs_to_know_what_is_in_each_container() -> None:
    result = run("render", "--target", "compose")
    assert result.exit_code == 1
    lines = [line for line in result.output.splitlines() if "error[NM613]" in line]
    assert [line.partition("] ")[2] for line in lines] == [
        f"`{name}` has no image" for name in ("booking", "customs", "delivery", "sorting", "tariff", "tracking")
    ]


def test_compose_has_each_replica_and_its_sidecar(tmp_path: Path) -> None:
    text = (FOREIGN / "mesh.yaml").read_text(encoding="utf-8")
    text = text.replace("[protos, legacy]", f"[{FOREIGN / 'protos'}, {FOREIGN / 'legacy'}]")
    (tmp_path / "parcels.yaml").write_text(text.replace("    serves:", "    image: carrier:1\n    serves:"))
    words = ["--file", str(tmp_path / "parcels.yaml"), "render", "--target", "compose", "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(main, words, prog_name="nipmesh")
    assert result.exit_code == 0, result.output
    document = yaml.safe_load((tmp_path / "out" / "compose.yaml").read_text())
    services = document["services"]
    assert services.keys() >= {"agent", "gateway", "introspection", "postgresql"}
    assert len(services) == 2 * 7 + 4
    assert "..:/etc/nipmesh/mesh:ro" in services["agent"]["volumes"]
    assert "/etc/nipmesh/mesh/parcels.yaml" in services["agent"]["command"]
    assert services["sorting-0"]["command"] == ["node", "apps/sorting/main.js"]
    assert services["delivery-0"]["environment"]["DEPOT"] == "machine"
