"""The command line: help without heavy imports, exit codes, schema, explain, check."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import click
import jwt
import pytest
from click.testing import CliRunner, Result

from generator.cli.main import COMMANDS, main
from generator.manifest.schema import json_schema
from generator.outputs.local.paths import StatePaths
from generator.pki import TokenKey

ROOT = Path(__file__).resolve().parents[3]
MANIFEST = str(ROOT / "mesh.yaml")
HEAVY = ("yaml", "google.protobuf", "grpc", "jinja2", "rich", "cryptography", "generator.analysis", "generator.outputs")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), prog_name="nipmesh")


def test_help_lists_every_command_and_imports_none() -> None:
    script = "import sys; from generator.cli.main import main\n"
    script += "try:\n    main(['--help'], prog_name='nipmesh')\nexcept SystemExit as end:\n    assert end.code == 0\n"
    script += f"print([name for name in {HEAVY!r} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    for name, entry in COMMANDS.items():
        assert f"  {name}" in done.stdout
        assert entry.help in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", ["apply", "check", "explain", "render", "schema"])
def test_commands_exist_and_explain_themselves(name: str) -> None:
    assert isinstance(import_module(COMMANDS[name].module).command, click.Command)
    result = run(name, "--help")
    assert result.exit_code == 0
    assert "Usage: nipmesh" in result.output


@pytest.mark.parametrize("arguments", [("nope",), ("--nope",), ("check", "--nope"), ("explain", "a", "b")])
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


def test_the_version_names_envoy_too() -> None:
    result = run("--version")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[0].startswith("nipmesh ")
    assert lines[1].startswith("envoy 1.")


def test_python_m_generator_is_the_command() -> None:
    command = [sys.executable, "-m", "generator", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: nipmesh")


def test_schema_prints_the_schema() -> None:
    result = run("schema")
    assert result.exit_code == 0
    assert json.loads(result.output) == json_schema()


def test_schema_prints_the_reference_for_people() -> None:
    result = run("schema", "--reference")
    assert result.exit_code == 0
    assert result.output == (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")


def test_check_of_a_sound_manifest() -> None:
    result = run("-f", MANIFEST, "check", "--no-envoy")
    assert result.exit_code == 0, result.output
    assert "0 errors, 0 warnings" in result.output
    assert "mesh nip: 3 services, 6 replicas" in result.output


def test_check_of_a_broken_manifest_shows_everything_and_fails(tmp_path: Path) -> None:
    text = Path(MANIFEST).read_text(encoding="utf-8")
    text = text.replace("protos: [protos]", f"protos: ['{ROOT / 'protos'}']").replace("issuer: nip", "issuer: nipp")
    text = text.replace("NipService/SignEvent]", "NipService/SingEvent]")
    (tmp_path / "mesh.yaml").write_text(text, encoding="utf-8")
    result = run("-f", str(tmp_path / "mesh.yaml"), "check")
    assert result.exit_code == 1
    lines = text.splitlines()
    method = next(number for number, line in enumerate(lines, start=1) if "NipService/SingEvent" in line)
    column = lines[method - 1].index("NipService/SingEvent") + 1
    assert f"mesh.yaml:{method}:{column}: error[NM305] unknown method `NipService/SingEvent`" in result.output
    assert "did you mean `NipService/SignEvent`?" in result.output
    issuer = lines.index("    issuer: nipp") + 1
    assert f"mesh.yaml:{issuer}:13: error[NM401] unknown issuer `nipp`" in result.output
    assert "2 errors, 0 warnings, 0 notes" in result.output


@pytest.mark.parametrize("name", ["check", "explain", "render"])
def test_a_manifest_that_is_not_there_is_a_finding(tmp_path: Path, name: str) -> None:
    result = run("-f", str(tmp_path / "none.yaml"), name)
    assert result.exit_code == 1
    assert "error[NM001]" in result.output
    assert "Traceback" not in result.output


def test_explain_shows_values_with_reasons() -> None:
    result = run("-f", MANIFEST, "explain")
    assert result.exit_code == 0
    assert "panic_threshold_percent" in result.output
    lines = (ROOT / MANIFEST).read_text(encoding="utf-8").splitlines()
    deadline = next(number for number, line in enumerate(lines, start=1) if "PayInvoice: {deadline" in line)
    assert f"line {deadline} of the manifest" in result.output


@pytest.mark.parametrize("subject", ["payment/PayInvoice", "payment/PaymentService/PayInvoice"])
def test_explain_shows_one_method(subject: str) -> None:
    result = run("-f", MANIFEST, "explain", subject)
    assert result.exit_code == 0
    assert result.output.splitlines()[0] == "payment/nipmesh.payment.v1.PaymentService/PayInvoice"
    assert "outlier" not in result.output


def test_explain_of_something_unknown_suggests_the_nearest() -> None:
    result = run("-f", MANIFEST, "explain", "payment/PayInvoce")
    assert result.exit_code == 1
    assert "did you mean `payment/PayInvoice`?" in result.output


def test_a_damaged_token_key_is_named_with_its_mend(tmp_path: Path) -> None:
    manifest = (ROOT / "mesh.yaml").read_text(encoding="utf-8").replace("[protos]", f"[{ROOT / 'protos'}]")
    (tmp_path / "mesh.yaml").write_text(manifest, encoding="utf-8")
    key = tmp_path / ".nipmesh" / "pki" / "token" / "token.key"
    key.parent.mkdir(parents=True, mode=0o700)
    key.write_text("bad", encoding="utf-8")
    result = run("--file", str(tmp_path / "mesh.yaml"), "token")
    assert result.exit_code == 1
    assert result.output.startswith(f"{key} holds no readable P-256 key; remove it")
    assert result.output.count("\n") == 1


def test_a_token_is_signed_with_the_key_of_the_state_that_is_named(tmp_path: Path) -> None:
    manifest = (ROOT / "mesh.yaml").read_text(encoding="utf-8").replace("[protos]", f"[{ROOT / 'protos'}]")
    (tmp_path / "mesh.yaml").write_text(manifest, encoding="utf-8")
    result = run("--file", str(tmp_path / "mesh.yaml"), "token", "--state", str(tmp_path / "state"))
    assert result.exit_code == 0, result.output
    public = json.loads(TokenKey.open(StatePaths(root=tmp_path / "state").token_key).key_set())["keys"][0]
    assert jwt.get_unverified_header(result.output.strip())["kid"] == public["kid"]
    assert not (tmp_path / ".nipmesh").exists()
