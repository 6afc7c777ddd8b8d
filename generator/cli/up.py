"""`nipmesh up`: run the mesh on this machine."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from generator.cli.main import EXIT_FAILURE, Invocation

if TYPE_CHECKING:  # imported when the command runs: `--help` stays fast
    from generator.model import Mesh
    from generator.model.overrides import Overrides

READY_TIMEOUT_S = 60.0
UMASK = 0o077
"""Whatever a supervisor writes is its owner's alone."""


@click.command(help="Run the mesh on this machine until Ctrl-C, or in the background.")
@click.option("-d", "--detach", is_flag=True, help="Return once all replicas are ready; `nipmesh down` stops.")
@click.option("--gateway-listen", metavar="HOST:PORT", help="Where the gateway listens, instead of the manifest's.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=1, max=3600),
    default=READY_TIMEOUT_S,
    show_default=True,
    help="With --detach: seconds until all replicas must be ready.",
)
@click.option("--ready-fd", type=int, hidden=True, help="Where a detached supervisor reports how its start ended.")
@click.pass_obj
def command(
    invocation: Invocation, detach: bool, gateway_listen: str | None, timeout: float, ready_fd: int | None
) -> None:
    """Dispatch: start a detached supervisor, or be one."""
    if detach:
        _detach(invocation.manifest, gateway_listen, timeout)
    else:
        _supervise(invocation.manifest, gateway_listen, timeout, ready_fd)


def _detach(manifest: Path, gateway_listen: str | None, timeout: float) -> None:
    from generator.outputs.local.client import read_current
    from generator.outputs.local.detach import start_detached
    from generator.outputs.local.lock import UpError, locked
    from generator.outputs.local.paths import StatePaths

    try:
        with locked(StatePaths.beside(manifest)):
            pass
    except UpError as error:
        click.echo(str(error), err=True)
        sys.exit(EXIT_FAILURE)
    words = ("--timeout", str(timeout), *(("--gateway-listen", gateway_listen) if gateway_listen else ()))
    outcome = start_detached(manifest, words, timeout)
    if not outcome.is_ready:
        click.echo(outcome.reason, err=True)
        sys.exit(EXIT_FAILURE)
    current = read_current(manifest)
    click.echo(f"{current['mesh']} is ready; the gateway listens at {current['gateway']}")


def _supervise(manifest: Path, gateway_listen: str | None, timeout: float, ready_fd: int | None) -> None:
    """Run the mesh in this process; whatever goes wrong is told to the terminal and to whoever waits at `ready_fd`."""
    from generator.outputs.local.detach import Outcome, send_outcome
    from generator.outputs.local.lock import UpError

    os.umask(UMASK)
    waiting = [ready_fd] if ready_fd is not None else []

    def on_ready() -> None:
        if waiting:
            send_outcome(waiting.pop(), Outcome(is_ready=True, reason=""))

    try:
        _run(manifest.resolve(), gateway_listen, timeout if ready_fd is not None else None, on_ready)
    except UpError as error:
        click.echo(str(error), err=True)
        if waiting:
            send_outcome(waiting.pop(), Outcome(is_ready=False, reason=str(error)))
        sys.exit(EXIT_FAILURE)


def _run(manifest: Path, gateway_listen: str | None, timeout: float | None, on_ready: Callable[[], None]) -> None:
    from generator.model.overrides import Overrides
    from generator.outputs.local.binary import EnvoyNotFoundError, find_envoy
    from generator.outputs.local.lock import UpError, locked
    from generator.outputs.local.paths import StatePaths
    from generator.outputs.local.running import Request, run_mesh

    overrides = Overrides(gateway_listen=gateway_listen)
    mesh = _mesh(manifest, overrides)
    try:
        envoy = find_envoy()
    except EnvoyNotFoundError as error:
        raise UpError(str(error)) from error
    request = Request(manifest=manifest, mesh=mesh, overrides=overrides, envoy=envoy, ready_timeout_s=timeout)
    with locked(StatePaths.beside(manifest)):
        if sys.stdout.isatty():
            from generator.outputs.local.table import LiveTable

            table = LiveTable()
            running = run_mesh(request, listener=table.listen, on_ready=on_ready, display=table.show)
        else:
            running = run_mesh(request, listener=lambda happening: click.echo(happening.line()), on_ready=on_ready)
        asyncio.run(running)


def _mesh(manifest: Path, overrides: Overrides) -> Mesh:
    """Analyse the manifest; raises UpError with all its findings when it has errors."""
    from generator.analysis import Output, check_manifest
    from generator.outputs.local.lock import UpError

    analysis = check_manifest(manifest, overrides=overrides, output=Output.UP)
    if analysis.mesh is None:
        raise UpError("\n".join(str(finding) for finding in analysis.findings))
    for finding in analysis.findings:
        click.echo(str(finding), err=True)
    return analysis.mesh
