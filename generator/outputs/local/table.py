"""The live table of `nipmesh up` on a terminal, and the plain one of `nipmesh status`."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from generator.model.events import EVENTS
from generator.outputs.local.events import Happening
from generator.outputs.local.status import status_document
from generator.outputs.local.supervisor import Supervisor
from generator.outputs.local.versions import State
from generator.render.names import XDS_FOLDERS

REFRESH_S = 0.5
COLORS = {"ready": "green", "starting": "yellow", "waiting": "red", "unready": "red", "stopped": "dim"}
VERSION_SHOWN = 8
"""Hexadecimal digits: enough to see that two sidecars differ, or that one has changed."""
QUIET = frozenset({"published", "certificate"})
"""Kinds that happen all the time and are in the table anyway."""


class LiveTable:
    """Shows what happens above a table of what is."""

    def __init__(self) -> None:
        self._console = Console(stderr=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def listen(self, happening: Happening) -> None:
        """Print one happening above the table."""
        if happening.kind not in QUIET:
            self._console.print(Text(happening.line()))

    async def show(self, supervisor: Supervisor) -> None:
        """Refresh the table until cancelled."""
        with self._live:
            while True:
                document = await status_document(supervisor)
                self._live.update(status_table(document, hint="Ctrl-C stops"), refresh=True)
                await asyncio.sleep(REFRESH_S)


def status_table(document: dict[str, Any], *, hint: str = "") -> Table:
    """Lay a status document out as a table; `hint` stands in its title."""
    gateway = document["gateway"]
    parts = (f"{document['mesh']}: {document['state']}", f"gateway {gateway['url']}" if gateway else "", hint)
    table = Table(title=" · ".join(part for part in parts if part), title_justify="left", expand=False)
    for column in ("workload", "app", "pid", "sidecar", "pid", "traffic", "restarts", "certificate", "configuration"):
        table.add_column(column, no_wrap=column == "workload")  # other columns make room for a name
    for service in document["services"].values():
        for replica in service["replicas"]:
            table.add_row(*_row(replica["name"], replica, is_in=replica["in_rotation"]))
    if gateway:
        table.add_row(*_row("gateway", gateway, is_in=gateway["state"] == "ready"))
    if document["events"] is not None and "state" in document["events"]:
        table.add_row(*_event_row(document["events"]))
    return table


def _event_row(entry: dict[str, Any]) -> tuple[Text, ...]:
    """The server of events; what its stream holds stands where others have their configuration."""
    stream = entry.get("stream")
    return (
        Text(EVENTS),
        Text(entry["app"], style=COLORS.get(entry["app"], "")),
        Text(str(entry["pid"] or "-")),
        *(Text("-"), Text("-"), Text("-")),
        Text(str(entry["restarts"])),
        Text(_remaining(entry["certificate_expiry"])),
        Text("-" if stream is None else f"{stream['messages']} events"),
    )


def _row(name: str, entry: dict[str, Any], *, is_in: bool) -> tuple[Text, ...]:
    return (
        Text(name),
        Text(entry["app"], style=COLORS.get(entry["app"], "")),
        Text(str(entry["pid"] or "-")),
        Text(entry["sidecar"], style=COLORS.get(entry["sidecar"], "")),
        Text(str(entry["sidecar_pid"] or "-")),
        Text("in", style="green") if is_in else Text("out", style="red"),
        Text(str(entry["restarts"] + entry["sidecar_restarts"])),
        Text(_remaining(entry["certificate_expiry"])),
        _configuration(entry["configuration"]),
    )


def _configuration(configuration: dict[str, Any]) -> Text:
    """Sum up: `a1b2c3d4 current`, or the kinds that the sidecar does not run as published, e.g. `clusters refused`."""
    if configuration["state"] is None:
        return Text("-")
    if configuration["state"] == State.CURRENT.value:
        return Text(f"{configuration['version'][:VERSION_SHOWN]} current", style="green")
    kinds = (kind for kind in XDS_FOLDERS if _has(configuration[kind], configuration["state"]))
    return Text(f"{', '.join(kinds)} {configuration['state']}", style="red")


def _has(resources: dict[str, Any], state: str) -> bool:
    return any(resource["state"] == state for resource in resources.values())


def _remaining(expiry: str | None) -> str:
    """Say how long a certificate is still good, e.g. `52 min`."""
    if expiry is None:
        return "-"
    left = dt.datetime.fromisoformat(expiry) - dt.datetime.now(dt.UTC)
    seconds = max(0, int(left.total_seconds()))
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"
