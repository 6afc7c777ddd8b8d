"""Which machine runs what: every workload once, and findings with lines for everything else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from generator.manifest import Finding, Severity
from generator.outputs.systemd import Hosts, Layout, Programs, PublicKeys, load_hosts, machine_of, tree, write_tree
from support.meshes import repository_mesh

GOOD = """\
hosts:
  alpha: {address: 10.0.0.1, runs: [gateway, nip, payment]}
  beta:
    address: 10.0.0.2
    runs: [nip-1, invoice, events]
"""
LAYOUT = Layout(project=Path("/srv/mesh"), programs=Programs.below(Path("/opt/nipmesh/bin")))


def load(tmp_path: Path, text: str) -> tuple[Hosts | None, tuple[Finding, ...]]:
    path = tmp_path / "hosts.yaml"
    path.write_text(text)
    return load_hosts(path, repository_mesh())


def test_every_workload_has_one_machine(tmp_path: Path) -> None:
    hosts, findings = load(tmp_path, GOOD)
    assert findings == ()
    assert hosts is not None
    assert hosts.runs == {
        "alpha": ("nip-0", "payment-0", "payment-1", "gateway"),
        "beta": ("invoice-0", "invoice-1", "nip-1", "events"),
    }
    assert hosts.addresses["nip-1"] == "10.0.0.2"
    assert hosts.addresses["gateway"] == "10.0.0.1"


@pytest.mark.parametrize(
    ("old", "new", "code", "line", "words"),
    [
        ("nip-1, ", "nip-2, ", "NM608", 5, "there is no"),
        ("invoice,", "invioce,", "NM608", 5, "`invoice`"),
        ("events]", "events, payment]", "NM608", 5, "`alpha` runs it already"),
        ("events]", "events, gateway]", "NM608", 5, "`alpha` runs it already"),
        ("nip, payment", "nip, nip-1, payment", "NM608", 5, "`alpha` runs it already"),
        (", events]", "]", "NM608", 1, "no machine has `events`"),
        ("10.0.0.2", "'::'", "NM608", 4, "told to connect"),
        ("10.0.0.2", "10.0.0.999", "NM107", 4, ""),
        ("10.0.0.2", "beta.example.org", "NM107", 4, "by number"),
        ("    address: 10.0.0.2\n", "", "NM102", 4, "address"),
        ("runs: [nip-1", "run: [nip-1", "NM101", 5, "no key of this name"),
        ("hosts:", "machines:", "NM101", 1, ""),
        ("hosts:", "hosts: [", "NM003", 3, ""),
    ],
)
def test_what_does_not_fit_is_said_with_its_line(
    tmp_path: Path, old: str, new: str, code: str, line: int, words: str
) -> None:
    assert old in GOOD
    hosts, findings = load(tmp_path, GOOD.replace(old, new, 1))
    assert hosts is None
    said = {(one.code, one.line): one for one in findings if one.severity is Severity.ERROR}
    assert (code, line) in said, findings
    found = said[code, line]
    assert words in f"{found.message} {found.cause} {found.fix}"


def test_a_machine_that_nobody_reaches_is_a_warning(tmp_path: Path) -> None:
    hosts, findings = load(tmp_path, GOOD.replace("10.0.0.2", "127.0.0.2"))
    assert hosts is not None
    assert [(finding.code, finding.severity, finding.line) for finding in findings] == [("NM608", Severity.WARNING, 4)]


def test_a_file_that_is_not_there_is_a_finding(tmp_path: Path) -> None:
    hosts, (finding,) = load_hosts(tmp_path / "nothing.yaml", repository_mesh())
    assert hosts is None
    assert finding.code == "NM001"


def test_each_machine_has_its_own_and_knows_where_the_others_are(tmp_path: Path) -> None:
    hosts, _ = load(tmp_path, GOOD)
    assert hosts is not None
    mesh = repository_mesh()
    alpha, beta = (machine_of(mesh, LAYOUT, hosts, name, PublicKeys()) for name in ("alpha", "beta"))
    assert alpha.placement == beta.placement, "every machine has the same map"
    for machine, folder in ((alpha, tmp_path / "a"), (beta, tmp_path / "b")):
        write_tree(machine, PublicKeys(), folder)
    of_alpha, of_beta = (
        {path.name for path in (tmp_path / name / "etc/nipmesh/envoy").iterdir()} for name in ("a", "b")
    )
    assert of_alpha == {"nip-0", "payment-0", "payment-1", "gateway"}
    assert of_beta == {"nip-1", "invoice-0", "invoice-1"}
    endpoints = (tmp_path / "a/etc/nipmesh/envoy/gateway/eds/outbound_nip.json").read_text()
    assert '"10.0.0.1"' in endpoints
    assert '"10.0.0.2"' in endpoints
    listeners = (tmp_path / "b/etc/nipmesh/envoy/nip-1/lds/lds.json").read_text()
    assert '"address":"10.0.0.2"' in listeners
    application = (tmp_path / "a/etc/systemd/system/nipmesh-nip-0.service").read_text()
    assert "NIPMESH_EVENTS_URL=tls://10.0.0.2:" in application
    assert "nipmesh-events.service" not in application, "it runs elsewhere"
    plan = json.loads(tree(beta, PublicKeys())[LAYOUT.certificate_plan])
    assert plan["workloads"]["events"]["hosts"] == ["10.0.0.2"]
    assert "gateway" not in plan["workloads"]
