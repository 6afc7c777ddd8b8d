"""The tables of `nipmesh events`."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_overview(answer: dict[str, Any]) -> None:
    """The streams, the outboxes, the consumers."""
    console = Console(soft_wrap=True)
    if answer["streams"] is not None:
        console.print(_streams(answer["streams"]))
    if answer["services"]:
        console.print(_outboxes(answer["services"]))
        console.print(_consumers(answer["services"]))


def print_dead(answer: dict[str, Any]) -> None:
    """Every dead letter in a row."""
    letters = answer["dead_letters"]
    table = _table(
        f"{len(letters)} dead letters",
        "service",
        "consumer",
        "number",
        "type",
        "about",
        "tried",
        "why",
        "error",
        "since",
    )
    for letter in letters:
        table.add_row(
            *(letter["service"], letter["consumer"], letter["number"], letter["type"], letter["subject"]),
            *(str(letter["attempts"]), letter["reason"], letter["error"], letter.get("create_time", "")),
        )
    Console(soft_wrap=True).print(table)


def _streams(streams: dict[str, Any]) -> Table:
    table = _table("streams", "stream", "events", "bytes", "first", "last", "to copy", "consumers (waiting)")
    for state in (streams["stream"], *streams["inboxes"].values()):
        consumers = ", ".join(f"{one['name']} ({one['pending']})" for one in state.get("consumers", ()))
        numbers = (state[name] for name in ("messages", "bytes", "first_sequence", "last_sequence", "lag"))
        table.add_row(state["name"], *map(str, numbers), consumers or "-")
    return table


def _outboxes(services: dict[str, Any]) -> Table:
    table = _table("outboxes", "service", "bus", "newest", "published", "behind", "since", "rejected", "leader")
    for name, status in services.items():
        outbox, bus = status["outbox"], status.get("bus", {})
        state = (
            Text("connected", style="green") if bus.get("connected") else Text(bus.get("error") or "none", style="red")
        )
        table.add_row(
            *(name, state, outbox["newest_sequence"], outbox["published_sequence"], outbox["behind"]),
            *(outbox.get("behind_since_time", "-"), outbox["rejected"], outbox["leader"] or "-"),
        )
    return table


def _consumers(services: dict[str, Any]) -> Table:
    table = _table("consumers", "service", "consumer", "types", "handled", "last", "waiting", "retrying", "dead")
    for name, status in services.items():
        for consumer in status["consumers"]:
            dead = Text(consumer["dead"], style="red" if consumer["dead"] != "0" else "")
            table.add_row(
                *(name, consumer["name"], " ".join(consumer["types"]), consumer["handled"]),
                *(consumer.get("handled_time", "-"), consumer.get("pending", "?"), consumer["retrying"], dead),
            )
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", expand=False)
    for column in columns:
        table.add_column(column)
    return table
