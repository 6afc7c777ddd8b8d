"""Which machine runs what: a small file beside the manifest, for whoever spreads a mesh over several.

hosts:
  alpha: {address: 10.0.0.1, runs: [gateway, orders]}       # every replica of orders that no other machine names
  beta:  {address: 10.0.0.2, runs: [orders-1, events]}
"""
# ruff: noqa: RUF009  (key() makes a dataclasses.field, which is what belongs there)

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from generator.manifest import Finding
from generator.manifest.collections import ListOf, MapOf, RecordOf, key
from generator.manifest.finding import START, Reporter, did_you_mean, quoted
from generator.manifest.kinds import Broken, Text
from generator.manifest.nodes import read_nodes, read_text
from generator.manifest.policies import NAME
from generator.manifest.values import Entry, Located, Record
from generator.model import Mesh
from generator.model.events import EVENTS
from generator.model.mesh import GATEWAY
from generator.outputs.workloads import has_event_server

HOSTS_MAX = 1_000
RUNS_MAX = 10_000
ADDRESS: Final = Text(
    word="an IP address like `10.0.0.1`",
    pattern=r"[0-9]{1,3}(\.[0-9]{1,3}){3}|[0-9A-Fa-f:.]{2,45}",
    length_max=45,
    rule="sidecars are told addresses by number: a name would have to be looked up before every call",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostEntry(Record):
    """One machine."""

    address: Located[str] | None = key(
        ADDRESS, "Where the other machines reach its sidecars.", required=True, example="10.0.0.1"
    )
    runs: tuple[Located[str], ...] = key(
        ListOf(item=NAME, count_max=RUNS_MAX, word="a list of workloads"),
        "Services (every replica that no other machine names), single replicas like `orders-1`, `gateway`, `events`.",
        required=True,
        example="[orders, gateway]",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class HostsFile(Record):
    """The whole file."""

    hosts: tuple[Entry[HostEntry], ...] = key(
        MapOf(
            key=NAME,
            item=RecordOf(record=HostEntry, word="a machine with `address` and `runs`"),
            count_max=HOSTS_MAX,
            word="a mapping from name to machine",
        ),
        "The machines.",
        required=True,
        example="{alpha: {address: 10.0.0.1, runs: [orders, gateway]}}",
    )


HOSTS: Final = RecordOf(record=HostsFile, word="a mapping with the key hosts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosts:
    """Every workload's machine."""

    runs: Mapping[str, tuple[str, ...]]
    """Machine to its workloads, in the order of the mesh."""
    addresses: Mapping[str, str]
    """Workload to the address of its machine."""


def load_hosts(path: Path, mesh: Mesh) -> tuple[Hosts | None, tuple[Finding, ...]]:
    """Read the file and place every workload of the mesh; None when a finding is an error. Never raises for what it holds."""
    reporter = Reporter(path=str(path), lines=())
    text = read_text(path, reporter)
    if text is not None:
        reporter.lines = tuple(text.splitlines())
    node = None if text is None else read_nodes(text, reporter)
    loaded = None if node is None else HOSTS.load(node, reporter, "")
    if loaded is None or isinstance(loaded, Broken) or reporter.has_errors:
        return None, reporter.sorted()
    found = _placed(loaded, mesh, reporter)
    return (None if reporter.has_errors else found), reporter.sorted()


def workloads(mesh: Mesh) -> Iterator[tuple[str, str]]:
    """Each workload and by which name all of its kind are called."""
    for service in mesh.services:
        yield from ((f"{service.name}-{index}", service.name) for index in range(service.replicas))
    if mesh.gateway is not None:
        yield GATEWAY, GATEWAY
    if has_event_server(mesh):
        yield EVENTS, EVENTS


def _placed(written: HostsFile, mesh: Mesh, reporter: Reporter) -> Hosts:
    kinds = dict(workloads(mesh))
    machines: dict[str, str] = {}
    addresses = {entry.key.value: _address(entry, len(written.hosts), reporter) for entry in written.hosts}
    for pattern in (_single, _whole):  # a single replica's machine wins over that of its service
        for machine, name in ((entry.key.value, run) for entry in written.hosts for run in entry.value.runs):
            pattern(machine, name, kinds, machines, reporter)
    for workload in kinds.keys() - machines.keys():
        cause = f"no machine has `{workload}` in its `runs`"
        reporter.report("NM608", START, f"nobody runs `{workload}`", cause=cause, fix="add it, or its service")
    runs = {entry.key.value: tuple(w for w in kinds if machines.get(w) == entry.key.value) for entry in written.hosts}
    return Hosts(runs=runs, addresses={workload: addresses[machine] for workload, machine in machines.items()})


def _single(
    machine: str, name: Located[str], kinds: Mapping[str, str], machines: dict[str, str], reporter: Reporter
) -> None:
    if name.value in kinds.values() and name.value not in (GATEWAY, EVENTS):
        return
    if name.value not in kinds:
        fix = did_you_mean(name.value, {*kinds, *kinds.values()}, what="workload")
        cause = "the manifest has no such service, and no service so many replicas"
        reporter.report("NM608", name.position, f"there is no {quoted(name.value)}", cause=cause, fix=fix)
        return
    other = machines.setdefault(name.value, machine)
    if other != machine:
        _twice(name, other, reporter)


def _whole(
    machine: str, name: Located[str], kinds: Mapping[str, str], machines: dict[str, str], reporter: Reporter
) -> None:
    mine = [workload for workload, kind in kinds.items() if kind == name.value and kind != workload]
    free = [workload for workload in mine if workload not in machines]
    if mine and not free and all(machines[workload] != machine for workload in mine):
        _twice(name, machines[mine[0]], reporter)
    machines.update(dict.fromkeys(free, machine))


def _twice(name: Located[str], other: str, reporter: Reporter) -> None:
    cause = f"`{other}` runs it already, and its address can be only one"
    reporter.report("NM608", name.position, f"{quoted(name.value)} runs twice", cause=cause, fix="remove one of them")


def _address(entry: Entry[HostEntry], count: int, reporter: Reporter) -> str:
    written = entry.value.address
    assert written is not None, "a missing address is a finding already"
    try:
        address = ipaddress.ip_address(written.value)
    except ValueError as error:
        reporter.report("NM107", written.position, "not an address", cause=str(error), fix="write an IP address")
        return written.value
    if address.is_unspecified:
        cause = "others are told to connect to this address"
        reporter.report("NM608", written.position, "no address of a machine", cause=cause, fix="write its own")
    elif address.is_loopback and count > 1:
        cause = "no other machine reaches it there"
        fix = "write the address by which the others reach this machine"
        reporter.warn("NM608", written.position, f"`{entry.key.value}` is alone", cause=cause, fix=fix)
    return str(address)
