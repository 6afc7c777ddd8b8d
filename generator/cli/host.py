"""`nipmesh host`: what the units of a machine call when a process starts and ends, and an administrator by hand."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Final

import click

from generator.cli.certificates import told
from generator.cli.main import EXIT_FAILURE

READY_S: Final = 60.0
DRAIN_S: Final = 5.0
POLL_S: Final = 0.1
IDLE_POLLS: Final = 3
"""So many looks in a row without a call: one look may fall between two."""
FAIL, OPEN = "/healthcheck/fail", "/healthcheck/ok"
DRAIN = "/drain_listeners?inboundonly&graceful&skip_exit"
SOCKET = click.argument("socket", type=click.Path(path_type=Path))
"""Envoy's admin socket, e.g. /run/nipmesh/orders-0/admin.sock."""


@click.group(help="Start and end processes of a mesh in good order where `nipmesh up` does not run them.")
def command() -> None:
    """See the subcommands."""


@command.command()
@SOCKET
@click.option("--seconds", type=click.FloatRange(min=0), default=READY_S, show_default=True, help="Longest wait.")
def ready(socket: Path, seconds: float) -> None:
    """Wait until an Envoy has its configuration and its certificate."""
    from generator.introspection.admin import is_ready

    async def wait() -> None:
        while not await is_ready(socket):  # noqa: ASYNC110  # Envoy tells nobody by itself
            await asyncio.sleep(POLL_S)

    _within(wait(), seconds, f"the Envoy at {socket} is not ready after {seconds:g} s")


@command.command()
@SOCKET
@click.option("--seconds", type=click.FloatRange(min=0), default=DRAIN_S, show_default=True, help="Longest wait.")
@click.option("--listeners", is_flag=True, help="Close its listeners, too: for good, until it starts anew.")
def drain(socket: Path, seconds: float, listeners: bool) -> None:
    """Ask every connection of an Envoy to go with its next answer, and wait until no call runs. Nothing to do when it is not there.

    `/ready` says no from now on; `nipmesh host open` takes it back. Who sends it calls is a matter of the others' configuration: see
    `nipmesh render --leave`.
    """
    from generator.introspection.admin import AdminError, calls_run, post

    async def quiet() -> None:
        await post(socket, FAIL)
        if listeners:
            await post(socket, DRAIN)
        looks = 0
        while looks < IDLE_POLLS:
            await asyncio.sleep(POLL_S)
            looks = 0 if await calls_run(socket) else looks + 1

    async def drained() -> None:
        try:
            async with asyncio.timeout(seconds):
                await quiet()
        except TimeoutError:
            click.echo(f"calls still run after {seconds:g} s", err=True)
        except (OSError, AdminError) as error:
            click.echo(f"no Envoy to drain: {error}", err=True)

    asyncio.run(drained())


@command.command(name="open")
@SOCKET
def open_command(socket: Path) -> None:
    """Take back a drain: connections stay, and `/ready` says yes again. Nothing to do when the Envoy is not there: it starts open."""
    from generator.introspection.admin import AdminError, post

    try:
        asyncio.run(post(socket, OPEN))
    except (OSError, TimeoutError, AdminError) as error:
        click.echo(f"no Envoy to open: {error}", err=True)


@command.command()
@click.argument("streams", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--url", required=True, help="Where the mesh's own server of events listens.")
@click.option("--authorities", type=click.Path(path_type=Path), required=True, help="Who vouches for it, PEM.")
@click.option(
    "--keys", type=click.Path(path_type=Path, file_okay=False), required=True, help="The folder of its keepers' keys."
)
@click.option("--seconds", type=click.FloatRange(min=0), default=READY_S, show_default=True, help="Longest wait.")
def streams(streams: Path, url: str, authorities: Path, keys: Path, seconds: float) -> None:
    """Wait for the server of events, and make its streams what the file says. Safe to do again at any time."""
    from generator.outputs.nats import AdminConnection, EventsError, Keepers, Topology, ensure
    from generator.outputs.systemd.units import ADMIN_CREDENTIAL, KEEPER_PREFIX, SEED_SUFFIX

    def connection(name: str) -> AdminConnection:
        return AdminConnection(url=url, key=keys / name, authorities=authorities)

    with told():
        wanted = Topology.from_json(streams.read_bytes())
    services = {name: connection(f"{KEEPER_PREFIX}{name}{SEED_SUFFIX}") for name in wanted.inboxes}
    keepers = Keepers(mesh=connection(ADMIN_CREDENTIAL), services=services)
    problems: list[str] = []

    async def until_there() -> None:
        while True:
            try:
                return await ensure(keepers, wanted)
            except EventsError as error:
                problems.append(str(error))
                await asyncio.sleep(POLL_S)

    _within(until_there(), seconds, f"the server of events at {url} is not ready", problems)


def _within(work: Awaitable[None], seconds: float, complaint: str, problems: Sequence[str] = ()) -> None:
    """Do it, or end with 1 and the last of the problems."""

    async def bounded() -> bool:
        try:
            async with asyncio.timeout(seconds):
                await work
        except TimeoutError:
            return False
        return True

    if not asyncio.run(bounded()):
        click.echo(": ".join((complaint, *problems[-1:])), err=True)
        sys.exit(EXIT_FAILURE)
