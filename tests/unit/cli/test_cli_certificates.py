"""`nipmesh certificates` and `nipmesh secrets`: on one machine, and on two of which one has the authority."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from generator.cli.main import main
from generator.pki import installed_leaf
from generator.pki.plan import CertificatePlan, Wanted

REPOSITORY = Path(__file__).resolve().parents[3]
IDENTITY = "spiffe://nip.mesh/service/nip"
SECRETS = {
    "secrets/nip/NIP_KEYSTORE_KEY_FILE",
    "secrets/nip/events.nk",
    "secrets/events/admin.nk",
    "secrets/events/keepers/nip.nk",
    "pki/token/token.key",
}
Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a command with a plan and a state folder; its exit code has to be the one that is expected."""
    wanted = (Wanted(workload="nip-0", identity=IDENTITY, user="nobody"),)
    plan = CertificatePlan(trust_domain="nip.mesh", lifetime_ms=3_600_000, wanted=wanted)
    (tmp_path / "plan.json").write_bytes(plan.to_json())

    def command(*arguments: str, state: str = "state", expect: int = 0, plan: str = "plan.json") -> Result:
        own = ("--plan", str(tmp_path / plan), "--state", str(tmp_path / state))
        result = CliRunner().invoke(main, ["certificates", arguments[0], *own, *arguments[1:]], prog_name="nipmesh")
        assert result.exit_code == expect, (result.output, result.exception)
        return result

    return command


@pytest.fixture
def secrets(tmp_path: Path) -> Callable[[], Result]:
    def make() -> Result:
        words = ["-f", str(REPOSITORY / "mesh.yaml"), "secrets", "--state", str(tmp_path / "state")]
        result = CliRunner().invoke(main, words, prog_name="nipmesh")
        assert result.exit_code == 0, result.output
        return result

    return make


def test_secrets_are_made_once_and_nobody_else_reads_them(tmp_path: Path, secrets: Callable[[], Result]) -> None:
    told = secrets().output.splitlines()
    state = tmp_path / "state"
    names = {str(path.relative_to(state)) for path in state.rglob("*") if path.is_file()}
    assert names >= SECRETS
    assert {str(Path(line).relative_to(state)) for line in told} <= names
    before = {path: path.read_bytes() for path in state.rglob("*") if path.is_file()}
    assert all(path.stat().st_mode & 0o077 == 0 for path in before)
    secrets()
    assert {path: path.read_bytes() for path in state.rglob("*") if path.is_file()} == before


def test_what_is_due_is_renewed_and_what_is_not_stays(tmp_path: Path, run: Run, secrets: Callable[[], Result]) -> None:
    missing = run("list", expect=1).output
    assert missing.split() == ["nip-0", "missing", "-", IDENTITY]
    refused = run("renew", expect=1).output
    assert "make it with `nipmesh secrets`, or say who signs with --signer" in refused
    assert not list((tmp_path / "state").rglob("authority-*")), "no authority that nobody else trusts"
    secrets()
    assert run("renew").output.startswith("nip-0: renewed, valid until 20")
    assert run("renew").output == "nothing is due\n"
    (listed,) = json.loads(run("list", "--output", "json").output)
    assert (listed["workload"], listed["state"], listed["identity"]) == ("nip-0", "valid", IDENTITY)
    assert listed["renew"] < listed["expires"]
    first = installed_leaf(tmp_path / "state/certificates/nip-0")
    run("renew", "--all")
    second = installed_leaf(tmp_path / "state/certificates/nip-0")
    assert first is not None
    assert second is not None
    assert first.serial_number != second.serial_number
    assert (tmp_path / "state/trust/ca.crt").read_bytes().startswith(b"-----BEGIN CERTIFICATE")


def test_a_machine_without_the_authority_has_its_keys_signed(
    tmp_path: Path, run: Run, secrets: Callable[[], Result]
) -> None:
    """The command may be one over SSH; here it is the same program."""
    secrets()
    own = ("--plan", str(tmp_path / "plan.json"), "--state", str(tmp_path / "state"))
    signer = shlex.join((sys.executable, "-P", "-m", "nipmesh_home", "generator", "certificates", "sign", *own))
    run("renew", "--signer", signer, state="other")
    assert installed_leaf(tmp_path / "other/certificates/nip-0") is not None
    assert not (tmp_path / "other/pki").exists()
    assert not (tmp_path / "state/certificates").exists(), "the one that signs keeps nothing"
    assert run("renew", "--signer", "/bin/false", state="other").output == "nothing is due\n"
    failed = run("renew", "--all", "--signer", "/bin/false", state="other", expect=1)
    assert "/bin/false ended with 1" in failed.output
    assert (
        "no answer of `nipmesh certificates sign`"
        in run("renew", "--all", "--signer", "/bin/cat", state="other", expect=1).output
    )
    assert "No such file" in run("renew", "--all", "--signer", "/nowhere", state="other", expect=1).output
    (listed,) = json.loads(run("list", "--output", "json", state="other").output)
    assert listed["state"] == "valid", "a failure leaves what is there"


def test_a_plan_that_is_none_is_said(tmp_path: Path, run: Run) -> None:
    (tmp_path / "bad.json").write_text("{}")
    for command in ("renew", "sign", "list"):
        assert "is no plan of certificates" in run(command, plan="bad.json", expect=1).output
        assert "No such file" in run(command, plan="missing.json", expect=1).output


def test_files_are_given_to_users_that_exist(tmp_path: Path, run: Run, secrets: Callable[[], Result]) -> None:
    secrets()
    wanted = (Wanted(workload="nip-0", identity=IDENTITY, user="nipmesh-nobody-has-this-name"),)
    plan = CertificatePlan(trust_domain="nip.mesh", lifetime_ms=3_600_000, wanted=wanted)
    (tmp_path / "users.json").write_bytes(plan.to_json())
    refused = run("renew", "--chown", plan="users.json", expect=1).output
    assert "there is no user nipmesh-nobody-has-this-name; `systemd-sysusers` makes it" in refused
