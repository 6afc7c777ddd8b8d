"""`nipmesh init`: a manifest from the .proto files and programs that lie in a folder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import click

from generator.catalog.protoc import ProtocError
from generator.cli.analyse import print_findings
from generator.cli.main import EXIT_FAILURE, Invocation
from generator.manifest.finding import did_you_mean
from generator.scaffold import NoServicesError, Plan, PlannedService, RefusedError, manifest_text, plan_of, usable_name
from generator.scaffold.example import ExampleInTheWayError, write_example

STANDARD_OUTPUT = "-"


@click.command()
@click.option("-o", "--output", metavar="FILE", help="Where to write the manifest, instead of --file; `-` prints it.")
@click.option("--name", help="The mesh's name.  [default: the folder's]")
@click.option("--run", "runs", multiple=True, metavar="SERVICE=COMMAND", help="How a service is started.")
@click.option("--example", is_flag=True, help="First write a small project: a .proto file and a server in Python.")
@click.option("--no-input", is_flag=True, help="Ask nothing, also on a terminal.")
@click.pass_obj
def command(
    invocation: Invocation, output: str | None, name: str | None, runs: tuple[str, ...], example: bool, no_input: bool
) -> None:
    """Write a manifest for the .proto files of this folder.

    It finds the files' import roots (buf.yaml where there is one), which protobuf services there are, and the programs
    in Python, JavaScript and Go that serve them. What it cannot know it asks, on a terminal; else it writes a
    placeholder that `nipmesh check` points at. It never writes over a file.
    """
    to_print = output == STANDARD_OUTPUT
    target = invocation.manifest if output is None or to_print else Path(output)
    base = target.absolute().parent
    if not to_print and target.exists():
        fail(f"{target} is there already, and init never writes over a file; `nipmesh init --output -` prints one")
    if example:
        _write_example(base, err=to_print)
    plan = _with_commands(_plan(base, usable_name(name or base.name)), runs)
    if not (no_input or to_print) and sys.stdin.isatty() and sys.stdout.isatty():
        plan = replace(plan, services=tuple(_asked(service) for service in plan.services))
    if to_print:
        click.echo(manifest_text(plan), nl=False)
        return
    _write(target, manifest_text(plan))
    _tell(target, plan)


def fail(message: str) -> None:
    """Say what is wrong and end with exit code 1."""
    click.echo(message, err=True)
    sys.exit(EXIT_FAILURE)


def _write_example(base: Path, *, err: bool) -> None:
    try:
        base.mkdir(parents=True, exist_ok=True)
        names = write_example(base)
    except ExampleInTheWayError as error:
        fail(f"{error} is there already, and init never writes over a file: `--example` is for an empty folder")
    except OSError as error:
        fail(f"cannot write {error.filename}: {error.strerror}")
    else:
        click.echo(f"wrote {', '.join(names)}", err=err)


def _plan(base: Path, mesh: str) -> Plan:
    try:
        return plan_of(base, mesh)
    except NoServicesError as error:
        reason = f"{base}: {error}\n  fix:   {error.fix}"
    except RefusedError as error:
        print_findings(error.findings, err=True)
        reason = f"nothing was written: {error}"
    except ProtocError as error:
        reason = f"cannot run protoc: {error}"
    except OSError as error:
        reason = f"cannot read {error.filename or base}: {error.strerror}"
    fail(reason)
    raise AssertionError(reason)


def _with_commands(plan: Plan, runs: tuple[str, ...]) -> Plan:
    """The plan with what `--run` says."""
    names = [service.name for service in plan.services]
    said = {}
    for run in runs:
        name, separator, words = run.partition("=")
        if not separator or not words.strip():
            raise click.BadParameter(f"{run!r} is not SERVICE=COMMAND", param_hint="--run")
        if name not in names:
            fix = did_you_mean(name, names, what="service")
            raise click.BadParameter(f"there is no service `{name}`: {fix}", param_hint="--run")
        said[name] = words.strip()
    services = (replace(service, command=said.get(service.name, "")) for service in plan.services)
    return replace(plan, services=tuple(services))


def _asked(service: PlannedService) -> PlannedService:
    """The service, after the one question that its files do not answer."""
    if service.is_started:
        return service
    served = ", ".join(service.serves)
    words = f"How is one replica of `{service.name}` ({served}) started? Enter: say it later"
    return replace(service, command=click.prompt(words, default="", show_default=False).strip())


def _write(target: Path, text: str) -> None:
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        fail(f"cannot write {target}: {error.strerror}")


def _tell(target: Path, plan: Plan) -> None:
    """What was written, and what is left to whoever knows the programs."""
    names = ", ".join(service.name for service in plan.services)
    count = len(plan.services)
    click.echo(f"wrote {target}: {count} service{'' if count == 1 else 's'} ({names})")
    left = tuple(_left(plan))
    if left:
        click.echo("left to you:")
    for services, what in left:
        click.echo(f"  - {what}: {', '.join(services)}")
    click.echo("next: nipmesh check, nipmesh up")


def _left(plan: Plan) -> Iterator[tuple[list[str], str]]:
    """What each has to be or to have that its source does not show."""
    lacks: dict[str, Callable[[PlannedService], bool]] = {
        "say in `run` how it is started": lambda service: not service.is_started,
        "let it listen where NIPMESH_LISTEN says, or at PORT with `listen`": lambda service: not _listens(service),
        "let it answer grpc.health.v1.Health/Check; it gets calls once it says SERVING": lambda service: (
            not _answers(service)
        ),
    }
    for what, is_lacking in lacks.items():
        names = [service.name for service in plan.services if is_lacking(service)]
        if names:
            yield names, what


def _listens(service: PlannedService) -> bool:
    program = service.program
    return program is not None and not service.command and (program.reads_listen or program.reads_port)


def _answers(service: PlannedService) -> bool:
    return service.program is not None and not service.command and service.program.answers_health
