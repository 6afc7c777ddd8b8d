"""`nipmesh token`: a user's token for development, signed with the mesh's own key."""

from __future__ import annotations

import datetime as dt
import re
import sys
from pathlib import Path

import click

from generator.cli.analyse import analysed
from generator.cli.main import EXIT_FAILURE, Invocation

DEVELOPMENT_SUBJECT = "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"
"""The public key of the private key 1: everybody's and nobody's."""
SUBJECT_PATTERN = re.compile(r"[0-9a-f]{64}")
LIFETIME_S = 900
LIFETIME_S_MAX = 24 * 3600
"""A development token that outlives a day is a password."""


@click.command(help="Print a token for development; only a mesh that issues its own tokens has the key.")
@click.option("--subject", metavar="PUBKEY", default=DEVELOPMENT_SUBJECT, help="Whose token: 64 hex digits.")
@click.option("--role", metavar="ROLE", help="For example operator.")
@click.option(
    "--lifetime",
    type=click.IntRange(min=1, max=LIFETIME_S_MAX),
    default=LIFETIME_S,
    show_default=True,
    help="Seconds.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder with the mesh's keys; by default `.nipmesh` beside the manifest.",
)
@click.pass_obj
def command(invocation: Invocation, subject: str, role: str | None, lifetime: int, state: Path | None) -> None:
    """Mint with the key in `.nipmesh`, which is made when there is none yet."""
    from generator.outputs.local.paths import StatePaths
    from generator.pki import DamagedFileError, TokenClaims, TokenKey

    if not SUBJECT_PATTERN.fullmatch(subject):
        raise click.BadParameter("a public key is 64 lower-case hex digits", param_hint="--subject")
    mesh, _ = analysed(invocation.manifest)
    authentication = None if mesh.gateway is None else mesh.gateway.authentication
    if authentication is None or authentication.issuer_service is None:
        click.echo("this mesh does not issue its own tokens (gateway.authentication.issuer)", err=True)
        sys.exit(EXIT_FAILURE)
    claims = TokenClaims(
        subject=subject,
        issuer=authentication.issuer,
        audience=authentication.audience,
        lifetime=dt.timedelta(seconds=lifetime),
        role=role,
    )
    try:
        paths = StatePaths.beside(invocation.manifest) if state is None else StatePaths(root=state)
        key = TokenKey.open(paths.token_key)
    except (OSError, DamagedFileError) as error:
        click.echo(str(error), err=True)
        sys.exit(EXIT_FAILURE)
    click.echo(key.mint(claims, dt.datetime.now(dt.UTC)))
