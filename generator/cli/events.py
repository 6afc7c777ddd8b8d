"""`nipmesh events`: how far events are, what could not be handled, and what is to be done about it; and the events themselves."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from generator.cli.analyse import analysed
from generator.cli.local import EXIT_NOT_RUNNING
from generator.cli.main import EXIT_FAILURE, EXIT_USAGE, Invocation
from generator.cli.sagas import metadata_of
from generator.model import Mesh
from generator.model.events import inbox, subject_filter
from generator.outputs.local.client import ControlError, NotRunningError, call

if TYPE_CHECKING:
    from generator.introspection.events import EventCaller
    from generator.outputs.nats import Keepers

PAGE_SIZE: Final = 500
PAGES_MAX: Final = 20
"""Ten thousand dead letters are more than anybody reads."""
LAST_DEFAULT: Final = 20
MOMENT: Final = click.DateTime(formats=["%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d", "%Y-%m-%dT%H:%M:%S%z"])
"""Without a zone it is the local one."""
EVENTS_HELP = """Show how far events are: the streams, each service's outbox, bus and consumers, and with --dead what could not be handled.

Services are asked through the socket of one of their replicas; only who runs the mesh can reach that.

Exit codes: 0 all were asked, 1 one did not answer, 3 the mesh is not running."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The running mesh and how to ask in it."""

    invocation: Invocation
    mesh: Mesh
    document: dict[str, Any]

    def services(self) -> Iterator[str]:
        """Every service, versions aside: they share what their service has."""
        return (service.name for service in self.mesh.services if service.version_of is None)

    def caller(self) -> EventCaller | None:
        """How to ask services; None when the mesh's protos have no EventService."""
        from generator.introspection.events import EventCaller

        try:
            return EventCaller(self.mesh.descriptor_set)
        except KeyError:
            return None

    def ask(self, caller: EventCaller, service: str, method: str, **request: Any) -> dict[str, Any]:
        """Ask the first replica that answers: they share their events. Raises EventsCallError."""
        from generator.introspection.events import EventsCallError

        problem = EventsCallError("it has no replica")
        for replica in self.document["services"].get(service, {"replicas": []})["replicas"]:
            try:
                return caller.call(replica["listen"], metadata_of(self.mesh), method, **request)
            except EventsCallError as error:
                problem = error
                if error.is_foreign:
                    break
        raise problem

    def keepers(self) -> Keepers | None:
        """How to reach the streams; None when the mesh has none that this could reach."""
        from generator.model.events import EVENTS
        from generator.outputs.local.paths import StatePaths
        from generator.outputs.nats import AdminConnection, Keepers, cluster_keepers
        from generator.pki.store import AUTHORITIES, DATA_LINK

        events = self.mesh.events
        if events is None or events.cluster is not None:
            return None if events is None else cluster_keepers(events)
        paths, url = StatePaths.beside(self.invocation.manifest), self.document["events"]["url"]
        trusted = paths.certificates(EVENTS) / DATA_LINK / AUTHORITIES
        mine = {
            name: AdminConnection(url=url, key=paths.event_keeper(name), authorities=trusted)
            for name in self.services()
        }
        return Keepers(mesh=AdminConnection(url=url, key=paths.event_admin, authorities=trusted), services=mine)


@click.group(invoke_without_command=True, help=EVENTS_HELP)
@click.option("--service", help="Only this service.")
@click.option("--dead", is_flag=True, help="The events that could not be handled, with their errors.")
@click.option("--consumer", default="", help="With --dead: only those of this consumer.")
@click.option("--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.pass_context
def command(context: click.Context, service: str | None, dead: bool, consumer: str, output: str) -> None:
    """Ask, merge, print; the subcommands do something."""
    if context.invoked_subcommand is not None:
        return
    asked = _asked(context.obj)
    if service is not None and service not in asked.services():
        _fail(f"there is no service {service}; the mesh has {', '.join(asked.services())}", EXIT_USAGE)
    answer = _dead(asked, service, consumer) if dead else _overview(asked, service)
    if output == "json":
        click.echo(json.dumps(answer, indent=2))
    else:
        from generator.cli.events_table import print_dead, print_overview

        (print_dead if dead else print_overview)(answer)
    for name, problem in answer["unanswered"].items():
        click.echo(f"{name} did not answer: {problem}", err=True)
    sys.exit(EXIT_FAILURE if answer["unanswered"] else 0)


@command.command(
    "replay", help="Have events handled or published again: dead letters, a consumer's stream, or an outbox."
)
@click.argument("service")
@click.option("--consumer", default="", help="A consumer of the service; without it its outbox is published again.")
@click.option("--dead", is_flag=True, help="The consumer's dead letters instead of its stream.")
@click.option("--number", "numbers", type=click.IntRange(min=1), multiple=True, help="Only these dead letters.")
@click.option(
    "--from-sequence", type=click.IntRange(min=0), help="From this place in the stream, or after it in the outbox."
)
@click.option("--from-time", type=MOMENT, help="From this time on, for example 2026-11-26T08:00.")
@click.option("--again", is_flag=True, help="Also what the consumer has handled: it has its effect a second time.")
@click.pass_obj
def replay(invocation: Invocation, /, service: str, consumer: str, dead: bool, again: bool, **where: Any) -> None:
    """Say which, and have it done."""
    numbers, sequence, time = where["numbers"], where["from_sequence"], where["from_time"]
    if (numbers or dead) and not consumer:
        _fail("dead letters are a consumer's: add --consumer", EXIT_USAGE)
    if sequence is not None and time is not None:
        _fail("--from-sequence and --from-time exclude each other", EXIT_USAGE)
    begins = {} if time is None else {"time": time.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")}
    if dead or numbers:
        answer = _do(invocation, service, "ReplayDeadLetters", consumer=consumer, numbers=list(numbers))
        click.echo(f"{answer['count']} dead letters of {consumer} are tried again")
    elif consumer:
        begins |= {} if sequence is None else {"position": sequence}
        _do(invocation, service, "ReplayConsumer", consumer=consumer, again=again, **begins)
        click.echo(f"{consumer} reads its stream again")
    else:
        begins |= {} if sequence is None else {"after_sequence": sequence}
        answer = _do(invocation, service, "ReplayOutbox", **begins)
        click.echo(f"{service} publishes again what is after {answer['after_sequence']}, up to {answer['to_sequence']}")


@command.command("discard", help="Delete dead letters for good: their consumer never gets these events again.")
@click.argument("service")
@click.option("--consumer", required=True, help="Whose.")
@click.option("--number", "numbers", type=click.IntRange(min=1), multiple=True, help="Only these.")
@click.option("--all", "everything", is_flag=True, help="All of the consumer.")
@click.pass_obj
def discard(invocation: Invocation, service: str, consumer: str, numbers: tuple[int, ...], everything: bool) -> None:
    """Have them deleted."""
    if bool(numbers) == everything:
        _fail("say which: --number, or --all", EXIT_USAGE)
    answer = _do(invocation, service, "DiscardDeadLetters", consumer=consumer, numbers=list(numbers))
    click.echo(f"{answer['count']} dead letters of {consumer} are gone")


@command.command(
    "tail", help="Print events of the mesh's stream, oldest first, with their payloads where the protos know them."
)
@click.option("--service", default="*", help="Only what this service published.")
@click.option("--type", "kind", default="", help="Only this type; a last * stands for one word.")
@click.option("--subject", default="", help="Only what is about this.")
@click.option("--from-sequence", type=click.IntRange(min=1), help="From this place in the stream on.")
@click.option("--from-time", type=MOMENT, help="From this time on.")
@click.option(
    "-n", "last", type=click.IntRange(min=0), default=LAST_DEFAULT, show_default=True, help="The last so many."
)
@click.option("--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option("--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.pass_obj
def tail(invocation: Invocation, /, follow: bool, output: str, **which: Any) -> None:
    """Read through the bus with the key that keeps the mesh's stream."""
    from generator.outputs.nats import EventsError

    asked = _asked(invocation)
    try:
        asyncio.run(_tail(asked, which, follow=follow, output=output))
    except EventsError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        return


async def _tail(asked: Asked, which: dict[str, Any], *, follow: bool, output: str) -> None:
    from collections import deque

    from generator.outputs.nats.reading import Payloads, Wanted, read

    keepers = asked.keepers()
    if keepers is None:
        _fail("this mesh has no stream of NATS that can be read from here")
    begins = which["from_sequence"] is not None or which["from_time"] is not None
    subject = subject_filter(asked.mesh.name, which["service"], which["kind"] or "*")
    wanted = Wanted(
        subject=subject,
        about=which["subject"],
        sequence=which["from_sequence"],
        time=which["from_time"],
        last=None
        if begins or subject != subject_filter(asked.mesh.name, "*", "*") or which["subject"]
        else which["last"],
    )
    waiting: deque[dict[str, Any]] = deque(maxlen=None if begins else which["last"])
    is_caught_up = False
    async with keepers.mesh.open() as jetstream:
        async for event in read(jetstream, asked.mesh.name, wanted, Payloads(asked.mesh.descriptor_set)):
            if event is not None and not is_caught_up and not begins:
                waiting.append(event)
                continue
            for one in waiting:
                _print_event(one, output)
            waiting.clear()
            if event is not None:
                _print_event(event, output)
            elif not follow:
                return
            else:
                is_caught_up = True


def _print_event(event: dict[str, Any], output: str) -> None:
    if output == "json":
        click.echo(json.dumps(event))
        return
    head = f"{event['sequence']:>8}  {event['stored'][:23]}  {event['publisher']:<12} {event['type']:<40} {event['subject']}"
    click.echo(head.rstrip())


def _overview(asked: Asked, only: str | None) -> dict[str, Any]:
    """The streams as the server has them, and what each service says."""
    from generator.introspection.events import EventsCallError

    answer: dict[str, Any] = {"streams": None, "services": {}, "unanswered": {}}
    answer["streams"] = _streams(asked, answer["unanswered"])
    caller = asked.caller()
    for name in asked.services() if caller is not None else ():
        if only in (None, name):
            assert caller is not None
            try:
                answer["services"][name] = asked.ask(caller, name, "GetEventStatus")
            except EventsCallError as error:
                if not error.is_foreign:
                    answer["unanswered"][name] = str(error)
    return answer


def _streams(asked: Asked, unanswered: dict[str, str]) -> dict[str, Any] | None:
    from generator.outputs.nats import EventsError
    from generator.outputs.nats.reading import describe

    keepers = asked.keepers()
    if keepers is None:
        return None
    hearing = {
        service.name: inbox(asked.mesh.name, service.name) for service in asked.mesh.services if service.consumes
    }
    inboxes = {name: hearing[name] for name in asked.services() if name in hearing}
    try:
        return asyncio.run(describe(keepers, asked.mesh.name, inboxes))
    except EventsError as error:
        unanswered["events"] = str(error)
        return None


def _dead(asked: Asked, only: str | None, consumer: str) -> dict[str, Any]:
    """The dead letters of all services, oldest first."""
    from generator.introspection.events import EventsCallError

    answer: dict[str, Any] = {"dead_letters": [], "unanswered": {}}
    caller = asked.caller()
    for name in asked.services() if caller is not None else ():
        if only not in (None, name):
            continue
        assert caller is not None
        try:
            answer["dead_letters"] += [{"service": name} | letter for letter in _letters(asked, caller, name, consumer)]
        except EventsCallError as error:
            if not error.is_foreign:
                answer["unanswered"][name] = str(error)
    answer["dead_letters"].sort(key=lambda letter: letter.get("create_time", ""))
    return answer


def _letters(asked: Asked, caller: EventCaller, service: str, consumer: str) -> Iterator[dict[str, Any]]:
    token = ""
    for _ in range(PAGES_MAX):
        request = {"page_size": PAGE_SIZE, "page_token": token, "consumer": consumer}
        page = asked.ask(caller, service, "ListDeadLetters", **request)
        yield from page["dead_letters"]
        token = page["next_page_token"]
        if not token:
            return


def _do(invocation: Invocation, service: str, method: str, **request: Any) -> dict[str, Any]:
    """Have a service do something; end with its error when it does not."""
    from generator.introspection.events import EventsCallError

    asked = _asked(invocation)
    if service not in asked.services():
        _fail(f"there is no service {service}; the mesh has {', '.join(asked.services())}", EXIT_USAGE)
    caller = asked.caller()
    if caller is None:
        _fail("no service of this mesh answers for its events (nipmesh.operations.v1.EventService)")
    try:
        return asked.ask(caller, service, method, **request)
    except EventsCallError as error:
        _fail(str(error))


def _asked(invocation: Invocation) -> Asked:
    try:
        document = call(invocation.manifest, {"command": "status"})
    except NotRunningError as error:
        _fail(str(error), EXIT_NOT_RUNNING)
    except ControlError as error:
        _fail(str(error))
    mesh, _ = analysed(invocation.manifest)
    return Asked(invocation=invocation, mesh=mesh, document=document)


def _fail(message: str, code: int = EXIT_FAILURE) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(code)
