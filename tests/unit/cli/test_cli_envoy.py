"""`check` and `render` with everything behind them: resources, Envoy's opinion, files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec

from generator.analysis import check_manifest
from generator.cli.envoy import refusals, rendered
from generator.cli.main import main
from generator.outputs.files import validation
from generator.outputs.files.placement import nobodys_key_set
from generator.outputs.local.binary import EnvoyNotFoundError

ROOT = Path(__file__).resolve().parents[3]
MANIFEST = ROOT / "mesh.yaml"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["-f", str(MANIFEST), *arguments], prog_name="nipmesh")


def test_envoy_accepts_every_workload_of_this_mesh() -> None:
    result = run("check")
    assert result.exit_code == 0, result.output
    assert "Envoy accepts the configuration of 7 workloads" in result.output


def test_a_missing_envoy_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise EnvoyNotFoundError("looked everywhere")

    mesh = check_manifest(MANIFEST).mesh
    assert mesh is not None
    resources = rendered(mesh, MANIFEST, Path("/run/nipmesh/check"))
    monkeypatch.setattr(validation, "find_envoy", nowhere)
    (finding,) = refusals(resources, MANIFEST)
    assert (finding.code, finding.cause) == ("NM703", "looked everywhere")


def test_render_writes_files_once(tmp_path: Path) -> None:
    first = run("render", "-o", str(tmp_path / "out"))
    assert first.exit_code == 0, first.output
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"gateway", "nip-0", "nip-1", "payment-1"} <= names
    for name in ("bootstrap.json", "validate.json"):
        assert json.loads((tmp_path / "out" / "nip-0" / name).read_text(encoding="utf-8"))
    second = run("render", "-o", str(tmp_path / "out"))
    assert second.exit_code == 0
    assert "0 files written" in second.output


def test_the_key_of_nobody_is_a_key_and_always_the_same() -> None:
    (key,) = json.loads(nobodys_key_set())["keys"]
    x, y = (int.from_bytes(decoded(key[name])) for name in "xy")
    ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    assert nobodys_key_set() == nobodys_key_set()


def decoded(text: str) -> bytes:
    import base64

    return base64.urlsafe_b64decode(text + "=")
