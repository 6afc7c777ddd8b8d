"""`nipmesh sagas`: which work of the running mesh is in progress, waiting, stuck or being undone, and why."""

from __future__ import annotations

import datetime as dt
import json
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from generator.cli.analyse import analysed
from generator.cli.local import EXIT_NOT_RUNNING
from generator.cli.main import EXIT_FAILURE, Invocation
from generator.cli.token import DEVELOPMENT_SUBJECT
from generator.model import Mesh, defaults
from generator.outputs.local.client import ControlError, NotRunningError, call

if TYPE_CHECKING:
    from generator.introspection.sagas import SagaReader

STATES: Final = ("in_progress", "waiting", "stuck", "compensating")
COLORS: Final = {"stuck": "red", "compensating": "yellow", "waiting": "cyan"}
COLUMNS: Final = ("service", "kind", "id", "step", "state", "why", "attempts", "age", "next", "owner")
ROLE: Final = "operator"
SAGAS_HELP = """Show work in several steps that is not done: how it goes, and why it is where it is.

Every service that serves nipmesh.operations.v1.SagaService is asked, through the socket of one of its replicas; only who runs the mesh
can reach that.

Exit codes: 0 all were asked, 1 one did not answer, 3 the mesh is not running."""


@click.command(help=SAGAS_HELP)
@click.option("--state", type=click.Choice(STATES), multiple=True, help="Only these; may be repeated.")
@click.option("--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.pass_obj
def command(invocation: Invocation, state: tuple[str, ...], output: str) -> None:
    """Ask, merge, print."""
    try:
        document = call(invocation.manifest, {"command": "status"})
    except NotRunningError as error:
        click.echo(str(error), err=True)
        sys.exit(EXIT_NOT_RUNNING)
    except ControlError as error:
        click.echo(str(error), err=True)
        sys.exit(EXIT_FAILURE)
    mesh, _ = analysed(invocation.manifest)
    answer = ask(mesh, document)
    answer["sagas"] = [saga for saga in answer["sagas"] if not state or saga["state"] in state]
    _print(answer, output)
    sys.exit(EXIT_FAILURE if answer["unanswered"] else 0)


def ask(mesh: Mesh, document: dict[str, Any]) -> dict[str, Any]:
    """The sagas of all services that have any, with the service's name, oldest first; services that did not answer, and why."""
    from generator.introspection.sagas import SERVICE, SagaReader

    sagas: list[dict[str, Any]] = []
    unanswered: dict[str, str] = {}
    incomplete: list[str] = []
    asked = [service.name for service in mesh.services if SERVICE in service.service_names]
    reader = SagaReader(mesh.descriptor_set) if asked else None
    for name in asked:
        assert reader is not None
        found, more, problem = _ask_service(reader, document["services"].get(name, {"replicas": []}), metadata_of(mesh))
        sagas.extend({"service": name} | _plain(saga) for saga in found)
        if problem:
            unanswered[name] = problem
        if more:
            incomplete.append(name)
    sagas.sort(key=lambda saga: saga["create_time"])
    return {"services": asked, "sagas": sagas, "unanswered": unanswered, "incomplete": incomplete}


def metadata_of(mesh: Mesh) -> tuple[tuple[str, str], ...]:
    """What the gateway's sidecar would say of an operator."""
    authentication = None if mesh.gateway is None else mesh.gateway.authentication
    headers = dict(defaults.CLAIM_HEADERS if authentication is None else authentication.claim_headers)
    return (
        ("x-forwarded-client-cert", f"URI=spiffe://{mesh.trust_domain}/gateway"),
        (headers["sub"], DEVELOPMENT_SUBJECT),
        (headers["role"], ROLE),
    )


def _ask_service(
    reader: SagaReader, service: dict[str, Any], metadata: tuple[tuple[str, str], ...]
) -> tuple[list[dict[str, Any]], bool, str]:
    """The first replica that answers speaks for all: they share their sagas."""
    from generator.introspection.sagas import SagasError

    problem = "it has no replica"
    for replica in service["replicas"]:
        try:
            return (*reader.read(replica["listen"], metadata), "")
        except SagasError as error:
            problem = f"{replica['name']}: {error}"
    return [], False, problem


def _plain(saga: dict[str, Any]) -> dict[str, Any]:
    """With the state in the words of this command; what is unset in the message is there as well."""
    empty = {"kind": "", "saga_id": "", "step": "", "attempt": 0, "reason": "", "owner": "", "create_time": ""}
    return empty | saga | {"state": saga.get("state", "").removeprefix("STATE_").lower()}


def _print(answer: dict[str, Any], output: str) -> None:
    if output == "json":
        click.echo(json.dumps(answer, indent=2))
        return
    from rich.console import Console

    Console(soft_wrap=True).print(_table(answer["sagas"], dt.datetime.now(dt.UTC)))
    for name, problem in answer["unanswered"].items():
        click.echo(f"{name} did not answer: {problem}", err=True)
    for name in answer["incomplete"]:
        click.echo(f"{name} has more than are shown", err=True)


def _table(sagas: list[dict[str, Any]], now: dt.datetime) -> Any:  # rich is imported on use
    from rich.table import Table
    from rich.text import Text

    counts = ", ".join(f"{sum(saga['state'] == state for saga in sagas)} {state}" for state in STATES)
    table = Table(title=counts, title_justify="left", expand=False)
    for column in COLUMNS:
        table.add_column(column, no_wrap=column in {"id", "state"})
    for saga in sagas:
        table.add_row(
            *(saga["service"], saga["kind"], saga["saga_id"], saga["step"]),
            Text(saga["state"], style=COLORS.get(saga["state"], "")),
            *(saga["reason"], str(saga["attempt"]), _age(saga["create_time"], now), _next(saga, now), saga["owner"]),
        )
    return table


def _next(saga: dict[str, Any], now: dt.datetime) -> str:
    """When a replica takes it up; "now" while one drives it."""
    if "next_run_time" not in saga:
        return "now"
    seconds = (dt.datetime.fromisoformat(saga["next_run_time"]) - now).total_seconds()
    return f"in {max(0, round(seconds))} s"


def _age(time: str, now: dt.datetime) -> str:
    """For example 1:02:03, without fractions."""
    elapsed = now - dt.datetime.fromisoformat(time)
    return str(dt.timedelta(seconds=max(0, int(elapsed.total_seconds()))))
