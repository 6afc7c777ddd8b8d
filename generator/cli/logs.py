"""`nipmesh logs SERVICE`: what a service's processes wrote."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from generator.cli.main import EXIT_FAILURE, Invocation
from generator.cli.names import log_names

LINES_DEFAULT = 50


@click.command(help="Print the logs of SERVICE (or `gateway`, or `supervisor`), also of a mesh that has ended.")
@click.argument("service", shell_complete=log_names)
@click.option("--follow", is_flag=True, help="Go on printing what is added, until Ctrl-C.")
@click.option("--sidecar", is_flag=True, help="The sidecars' logs instead of the applications'.")
@click.option("--replica", type=click.IntRange(min=0), help="Only this replica.")
@click.option("-n", "lines", type=click.IntRange(min=0), default=LINES_DEFAULT, show_default=True, help="Last lines.")
@click.pass_obj
def command(invocation: Invocation, service: str, follow: bool, sidecar: bool, replica: int | None, lines: int) -> None:
    """Read the files in `.nipmesh/logs`; each line is labelled when there are several files."""
    from generator.outputs.local.logs import follow_all, tail
    from generator.outputs.local.paths import StatePaths

    directory = StatePaths.beside(invocation.manifest).logs
    files = _files(directory, service, "sidecar" if sidecar else "app", replica)
    if not files:
        click.echo(f"no logs of {service} in {directory}", err=True)
        sys.exit(EXIT_FAILURE)
    for label, path in files.items():
        for line in tail(path, lines):
            _print(label, line, len(files))
    if follow:
        try:
            for label, line in follow_all(files):
                _print(label, line, len(files))
        except KeyboardInterrupt:
            return


def _files(directory: Path, service: str, part: str, replica: int | None) -> dict[str, Path]:
    """Find the log of each replica, by workload name, in the order of their numbers."""
    if service == "supervisor":
        return {service: directory / "supervisor.log"} if (directory / "supervisor.log").exists() else {}
    suffix = f"-{part}.log"
    found = {}
    for path in directory.glob(f"*{suffix}"):
        name = path.name.removesuffix(suffix)
        stem, _, index = name.rpartition("-")
        is_ours = name == service or (stem == service and index.isdigit())
        if is_ours and (replica is None or index == str(replica)):
            found[name] = path
    return dict(sorted(found.items(), key=lambda item: (len(item[0]), item[0])))


def _print(label: str, line: str, files: int) -> None:
    click.echo(f"{label} | {line}" if files > 1 else line)
