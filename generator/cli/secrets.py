"""`nipmesh secrets`: make what a mesh keeps secret, where no `nipmesh up` does it."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING

import click

from generator.cli.analyse import analysed
from generator.cli.certificates import state_option, told
from generator.cli.main import Invocation

if TYPE_CHECKING:
    from generator.model import Mesh


@click.command()
@state_option
@click.pass_obj
def command(invocation: Invocation, state: Path) -> None:
    """Make the mesh's authority, the key of its tokens, the keys of its events and the secrets that the manifest has generated.

    What is there stays as it is. `state`'s folders are those of `nipmesh up`: a copy of `.nipmesh/secrets` and
    `.nipmesh/pki` is a mesh that moved.
    """
    mesh, _ = analysed(invocation.manifest)
    with told():
        for path in make_secrets(mesh, invocation.manifest.absolute().parent, state):
            click.echo(path)


def make_secrets(mesh: Mesh, manifest_directory: Path, state: Path) -> list[Path]:
    """Make what is missing; every file of it. Raises OSError and DamagedFileError."""
    from generator.outputs.local.environment import materialize_secrets
    from generator.outputs.local.paths import StatePaths
    from generator.outputs.workloads import has_event_server
    from generator.pki import Authority, TokenKey, UserKey
    from generator.pki.renewal import public_directory
    from generator.render.nats import hearers

    public_directory(state)
    paths = StatePaths(root=state)
    Authority.open(paths.authorities, mesh.trust_domain, dt.datetime.now(dt.UTC))
    found = sorted(paths.authorities.glob("authority-*.crt"))
    authentication = None if mesh.gateway is None else mesh.gateway.authentication
    if authentication is not None and authentication.issuer_service is not None:
        TokenKey.open(paths.token_key)
        found.append(paths.token_key)
    for service in mesh.services:
        files = materialize_secrets(service, paths, manifest_directory).values()
        found += [path for path in files if path.is_relative_to(paths.root)]
    if has_event_server(mesh):
        seeds = [paths.event_admin]
        seeds += [path(name) for name in hearers(mesh) for path in (paths.event_credentials, paths.event_keeper)]
        for path in seeds:
            UserKey.open(path)
        found += seeds
    return list(dict.fromkeys(found))
