"""`nipmesh certificates`: issue, renew, sign and list certificates where no `nipmesh up` does it."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from generator.cli.main import EXIT_FAILURE

if TYPE_CHECKING:
    from generator.pki.plan import CertificatePlan
    from generator.pki.renewal import Kept

PLAN: Final = Path("/etc/nipmesh/certificates.json")
STATE: Final = Path("/var/lib/nipmesh")
SIGNER_SECONDS_MAX: Final = 60
"""Another machine, over a network; the timer asks again."""
plan_option = click.option(
    "--plan",
    "plan_path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=PLAN,
    show_default=True,
    help="Whose certificates: a file of `nipmesh render --target systemd`.",
)
state_option = click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    default=STATE,
    show_default=True,
    help="The folder with `certificates/`, and on the machine that signs with `pki/`.",
)


@click.group(help="Keep the certificates of a machine whose processes `nipmesh up` does not run.")
def command() -> None:
    """See the subcommands."""


@command.command(name="renew")
@plan_option
@state_option
@click.option("--all", "is_all", is_flag=True, help="Also those that have lived less than half of their life.")
@click.option("--chown", "is_given", is_flag=True, help="Give each workload's files to its user (needs root).")
@click.option(
    "--signer",
    metavar="COMMAND",
    help="Who signs: a command that reads a request and writes the answer, e.g. `ssh authority nipmesh certificates sign`. "
    "By default the authority of this machine.",
)
def renew_command(plan_path: Path, state: Path, is_all: bool, is_given: bool, signer: str | None) -> None:
    """Issue what is missing and renew what has lived half of its life; keys are made here and stay here.

    Envoys see the new files by themselves. A failure leaves the old ones in force, and ends with 1.
    """
    from generator.outputs.systemd.layout import certificates_of, trust_of
    from generator.pki.renewal import alone, kept, renew, write_trust

    with told():
        plan, certificates, now = _plan(plan_path), certificates_of(state), dt.datetime.now(dt.UTC)
        sign = _local(plan, state) if signer is None else _remote(signer)
        with alone(certificates):
            due = tuple(each.workload for each in kept(plan, certificates) if is_all or each.is_due(now))
            renew(plan, due, certificates, sign, now, _ids if is_given else None)
            write_trust(trust_of(state), certificates, plan)
            expires = {each.workload: each.expires for each in kept(plan, certificates)}
    for name in due:
        click.echo(f"{name}: renewed, valid until {expires[name]:%Y-%m-%dT%H:%M:%SZ}")
    if not due:
        click.echo("nothing is due")


@command.command(name="sign")
@plan_option
@state_option
def sign_command(plan_path: Path, state: Path) -> None:
    """Answer a request on standard input: sign for the workloads of the plan, and for nobody else.

    The plan decides what a certificate says. Meant as the one command that a key of SSH may run.
    """
    with told():
        sys.stdout.buffer.write(_local(_plan(plan_path), state)(sys.stdin.buffer.read()))


@command.command(name="list")
@plan_option
@state_option
@click.option("--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def list_command(plan_path: Path, state: Path, output: str) -> None:
    """Show every certificate of this machine; the exit code is 1 when one is missing or over."""
    from generator.outputs.systemd.layout import certificates_of
    from generator.pki.renewal import kept

    with told():
        found = kept(_plan(plan_path), certificates_of(state))
    now = dt.datetime.now(dt.UTC)
    if output == "json":
        click.echo(json.dumps([_described(each, now) for each in found], indent=2))
    else:
        for each in found:
            row = _described(each, now)
            click.echo(f"{row['workload']:<24} {row['state']:<16} {row['expires'] or '-':<21} {row['identity']}")
    if any(each.expires is None or each.expires <= now for each in found):
        sys.exit(EXIT_FAILURE)


def _described(each: Kept, now: dt.datetime) -> dict[str, str | None]:
    state = "valid"
    if each.problem:
        state = each.problem
    elif each.expires is not None and each.expires <= now:
        state = "expired"
    elif each.is_due(now):
        state = "due"
    renew, expires = (None if at is None else f"{at:%Y-%m-%dT%H:%M:%SZ}" for at in (each.renew, each.expires))
    return {"workload": each.workload, "identity": each.identity, "state": state, "renew": renew, "expires": expires}


def _plan(path: Path) -> CertificatePlan:
    from generator.pki.plan import CertificatePlan

    return CertificatePlan.load(path)


def _local(plan: CertificatePlan, state: Path) -> Callable[[bytes], bytes]:
    """Sign with the authority of this machine; one is never made here: it would be trusted by nobody else."""
    from generator.outputs.local.paths import StatePaths
    from generator.pki import Authority
    from generator.pki.request import sign

    def signed(request: bytes) -> bytes:
        folder, now = StatePaths(root=state).authorities, dt.datetime.now(dt.UTC)
        if not any(folder.glob("authority-*.crt")):
            raise ValueError(
                f"there is no authority in {folder}; make it with `nipmesh secrets`, or say who signs with --signer"
            )
        return sign(request, plan, Authority.open(folder, plan.trust_domain, now), now)

    return signed


def _remote(signer: str) -> Callable[[bytes], bytes]:
    def signed(request: bytes) -> bytes:
        words = shlex.split(signer)
        try:
            done = subprocess.run(words, input=request, capture_output=True, timeout=SIGNER_SECONDS_MAX, check=False)
        except subprocess.TimeoutExpired:
            raise ValueError(f"{words[0]} did not answer within {SIGNER_SECONDS_MAX} s") from None
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip()
            raise ValueError(f"{words[0]} ended with {done.returncode}: {said}")
        return done.stdout

    return signed


def _ids(user: str) -> tuple[int, int]:
    import pwd

    try:
        found = pwd.getpwnam(user)
    except KeyError:
        raise ValueError(f"there is no user {user}; `systemd-sysusers` makes it") from None
    return found.pw_uid, found.pw_gid


@contextlib.contextmanager
def told() -> Iterator[None]:
    """End with 1 and the reason when files, plans or signers are not as they should be."""
    try:
        yield
    except (OSError, ValueError) as error:
        click.echo(str(error), err=True)
        sys.exit(EXIT_FAILURE)
