"""The `nipmesh` command group. Subcommands are looked up in a table and imported when they run: `--help` stays fast.

Exit codes: 0 all is well, 1 findings or a failure, 2 wrong usage, 3 the mesh is not running.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import click
from click.shell_completion import CompletionItem

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
    "certificates": Entry(module="generator.cli.certificates", help="Renew, sign and list certificates without `up`."),
    "check": Entry(module="generator.cli.check", help="Report everything that is wrong with the manifest."),
    "completion": Entry(
        module="generator.cli.completion", help="Print the script that lets a shell complete commands."
    ),
    "descriptors": Entry(module="generator.cli.descriptors", help="Write the exposed methods as a descriptor set."),
    "doctor": Entry(module="generator.cli.doctor", help="Check this machine: Envoy, ports, sockets, clock, keys."),
    "down": Entry(module="generator.cli.down", help="Stop the running mesh and leave nothing behind."),
    "events": Entry(module="generator.cli.events", help="Show how far events are; replay, discard and follow them."),
    "explain": Entry(module="generator.cli.explain", help="Print each computed default with its reason."),
    "host": Entry(module="generator.cli.host", help="Start and drain processes without `up`."),
    "init": Entry(module="generator.cli.init", help="Write a manifest for the .proto files of this folder."),
    "logs": Entry(module="generator.cli.logs", help="Print the logs of a service."),
    "render": Entry(module="generator.cli.render", help="Write Envoy's files, units of systemd, or Compose's file."),
    "restart": Entry(module="generator.cli.restart", help="Restart a service, one replica after the other."),
    "sagas": Entry(module="generator.cli.sagas", help="Show work in several steps that is not done, and why."),
    "scale": Entry(module="generator.cli.scale", help="Change how many replicas of a service run."),
    "schema": Entry(module="generator.cli.schema", help="Print the JSON Schema of the manifest, for editors."),
    "secrets": Entry(module="generator.cli.secrets", help="Make keys and generated secrets without `up`."),
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

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete names from the table, and options as click does."""
        names = (name for name in self.list_commands(ctx) if name.startswith(incomplete))
        options = click.Command.shell_complete(self, ctx, incomplete)
        return [*(CompletionItem(name, help=COMMANDS[name].help) for name in names), *options]

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
