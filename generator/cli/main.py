"""The `nipmesh` command group. Subcommands are looked up in a table and imported when they run: `--help` stays fast.

Exit codes: 0 all is well, 1 findings or a failure, 2 wrong usage, 3 the mesh is not running.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import click

EXIT_FAILURE = 1
EXIT_USAGE = 2
MANIFEST_NAME = "mesh.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """What the options before the subcommand said; `click.pass_obj` hands it to each command."""

    manifest: Path
    """The manifest file, as the user wrote it (relative to the working directory)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row of the command table."""

    module: str
    """The module that holds the command in an attribute `command`."""
    help: str
    """One line for `nipmesh --help`."""


COMMANDS: dict[str, Entry] = {
    "apply": Entry(module="generator.cli.apply", help="Change the running mesh to what the manifest says now."),
    "check": Entry(module="generator.cli.check", help="Report everything that is wrong with the manifest."),
    "descriptors": Entry(module="generator.cli.descriptors", help="Write the exposed methods as a descriptor set."),
    "doctor": Entry(module="generator.cli.doctor", help="Check this machine: Envoy, ports, sockets, clock, keys."),
    "down": Entry(module="generator.cli.down", help="Stop the running mesh and leave nothing behind."),
    "explain": Entry(module="generator.cli.explain", help="Print each computed default with its reason."),
    "logs": Entry(module="generator.cli.logs", help="Print the logs of a service."),
    "render": Entry(module="generator.cli.render", help="Write the Envoy configuration of every workload."),
    "restart": Entry(module="generator.cli.restart", help="Restart a service, one replica after the other."),
    "scale": Entry(module="generator.cli.scale", help="Change how many replicas of a service run."),
    "schema": Entry(module="generator.cli.schema", help="Print the JSON Schema of the manifest, for editors."),
    "status": Entry(module="generator.cli.status", help="Show what runs and how it feels."),
    "token": Entry(module="generator.cli.token", help="Mint a token for development."),
    "up": Entry(module="generator.cli.up", help="Run the mesh on this machine."),
}
"""Every subcommand; the modules are imported only when one runs."""


class LazyGroup(click.Group):
    """A group whose commands are imported on use and listed from the table."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, sorted."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command; None when there is no such command (click then says so)."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = import_module(entry.module).command
        assert isinstance(command, click.Command), entry.module
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table without importing a single command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].help) for name in self.list_commands(ctx)])


def print_version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    """Print nipmesh's version and that of the Envoy it would run, then exit."""
    if not value or ctx.resilient_parsing:
        return
    from generator.cli.versions import envoy_version, nipmesh_version

    click.echo(f"nipmesh {nipmesh_version()}")
    click.echo(f"envoy {envoy_version() or 'not found'}")
    ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-f",
    "--file",
    "manifest",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path(MANIFEST_NAME),
    show_default=True,
    help="The manifest.",
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=print_version,
    help="Print the versions of nipmesh and Envoy.",
)
@click.pass_context
def main(ctx: click.Context, manifest: Path) -> None:
    """One manifest and your protobufs in; a running, secured, explained gRPC mesh out."""
    ctx.obj = Invocation(manifest=manifest)
