"""What an output cannot do with a manifest: it says so, instead of leaving it out."""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterator
from pathlib import Path

from generator.manifest.events import EventsEntry
from generator.manifest.finding import Position, Reporter, quoted
from generator.manifest.types import Manifest, ServiceEntry
from generator.manifest.values import Entry, Located
from generator.model.resolve import parse_host

MANIFEST_FOLDER = "/etc/nipmesh/mesh"
"""Where the agent sees the manifest's folder, and what it renders expects the files that it names."""


class Output(enum.Enum):
    """Who does something with a mesh."""

    UP = "up"
    """Processes on this machine."""
    COMPOSE = "compose"
    """Containers."""
    SYSTEMD = "systemd"
    """Units."""


def check_output(manifest: Manifest, output: Output, base: Path, reporter: Reporter) -> None:
    """Report what this output cannot express."""
    if output is Output.UP:
        for entry in manifest.services:
            _check_processes(entry, reporter)
        return
    if output is Output.SYSTEMD:
        for entry in manifest.services:
            _check_unit(entry, base, reporter)
        return
    services = {entry.key.value: entry.value for entry in manifest.services}
    for entry in manifest.services:
        _check_image(entry, services, reporter)
        _check_container(entry, services, reporter)
    _check_loopbacks(manifest, reporter)
    _check_files(manifest, reporter)


def _check_processes(entry: Entry[ServiceEntry], reporter: Reporter) -> None:
    """A process of this machine sees its folders and takes what it wants of it."""
    service, name = entry.value, entry.key.value
    if service.volumes:
        cause = "a process of this machine sees its folders where they are"
        fix = f"let `{name}` read its folders' paths from `env`, or run it in a container"
        message = f"`nipmesh up` mounts no volumes for `{name}`"
        reporter.warn("NM609", service.volumes[0].position, message, cause=cause, fix=fix)
    if service.resources is not None:
        cause = "it starts plain processes, which share the machine"
        fix = "run the mesh in containers where limits matter"
        message = f"`nipmesh up` sets `{name}` no limits"
        reporter.warn("NM609", service.resources.position, message, cause=cause, fix=fix)


def _check_unit(entry: Entry[ServiceEntry], base: Path, reporter: Reporter) -> None:
    """Systemd starts what died, asks nobody how it feels, and reads files of variables in its own way."""
    service, name = entry.value, entry.key.value
    if service.probe is not None:
        cause = "systemd asks no process how it feels; other sidecars do, and leave it out when it does not answer"
        fix = "nothing, or a watchdog in the program itself (sd_notify(3))"
        reporter.note("NM609", service.probe.position, f"no unit of `{name}` has a probe", cause=cause, fix=fix)
    if service.env_file is not None and _exports(base / service.env_file.value):
        cause = "it has lines that begin with `export`, which systemd does not read"
        message = f"{quoted(service.env_file.value)} does not reach `{name}` as a whole"
        reporter.warn("NM609", service.env_file.position, message, cause=cause, fix="remove the word `export`")


def _exports(path: Path) -> bool:
    try:
        return any(line.strip().startswith("export ") for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError):
        return False  # a finding of its own


def _check_image(entry: Entry[ServiceEntry], services: dict[str, ServiceEntry], reporter: Reporter) -> None:
    service, name = entry.value, entry.key.value
    parent = None if service.version_of is None else services.get(service.version_of.value)
    if service.image is not None or (parent is not None and parent.image is not None):
        return
    cause = "a container needs to know what is in it"
    fix = f"add `image: {name}:1.0` to `{name}`; docs/containers.md says how one is built"
    reporter.report("NM613", entry.key.position, f"`{name}` has no image", cause=cause, fix=fix)


def _check_container(entry: Entry[ServiceEntry], services: dict[str, ServiceEntry], reporter: Reporter) -> None:
    service, name = entry.value, entry.key.value
    parent = None if service.version_of is None else services.get(service.version_of.value)
    probes = [one.probe for one in (service, parent) if one is not None and one.probe is not None]
    if not any(probe.command is not None for probe in probes):
        cause = "a container's health check is a program inside its image, and nobody says which"
        fix = f"add `probe: {{command: …}}` to `{name}`; until then it counts as ready when it has started"
        message = f"nobody looks whether a container of `{name}` is well"
        reporter.note("NM609", entry.key.position, message, cause=cause, fix=fix)
    if service.cwd is not None:
        cause = "a container has no folders of this machine but its volumes"
        fix = "set the image's WORKDIR"
        message = f"`{name}` starts in its image's folder, not in {quoted(service.cwd.value)}"
        reporter.warn("NM609", service.cwd.position, message, cause=cause, fix=fix)


def _check_loopbacks(manifest: Manifest, reporter: Reporter) -> None:
    """What a manifest finds on loopback is not there for a container."""
    for what, position in _loopbacks(manifest):
        cause = "loopback inside a container is that container's own"
        fix = "give an address that containers reach, e.g. that of a host on their network"
        reporter.warn("NM609", position, f"no container reaches {what}", cause=cause, fix=fix)


def _check_files(manifest: Manifest, reporter: Reporter) -> None:
    """Envoy's containers see none of the user's files."""
    for container, written in _files(manifest):
        cause = "a container sees its volumes, and nothing of the manifest's folder"
        inside = f"{MANIFEST_FOLDER}/{written.value}"
        fix = (
            f"keep it below the manifest's folder, and mount it at {inside} into {container} in a compose.override.yaml"
        )
        message = f"no container sees {quoted(written.value)}"
        reporter.warn("NM609", written.position, message, cause=cause, fix=fix)


def _files(manifest: Manifest) -> Iterator[tuple[str, Located[str]]]:
    """What an Envoy reads besides what is rendered for it, and whose it is."""
    gateway = manifest.gateway
    if gateway is not None and gateway.tls is not None:
        for written in (gateway.tls.certificate, gateway.tls.private_key):
            if written is not None:
                yield "`gateway`", written
    for entry in manifest.external:
        tls = entry.value.tls
        for written in () if tls is None else (tls.ca, tls.certificate, tls.private_key):
            if written is not None:
                yield "the sidecars that call it", written


def _loopbacks(manifest: Manifest) -> Iterator[tuple[str, Position]]:
    telemetry = manifest.telemetry
    if telemetry is not None and telemetry.otlp is not None and _is_loopback(telemetry.otlp.value):
        yield "the collector of traces", telemetry.otlp.position
    for entry in manifest.external:
        address = entry.value.address
        if address is not None and _is_loopback(address.value):
            yield f"the external host `{entry.key.value}`", address.position
    events = manifest.events
    if isinstance(events, EventsEntry) and isinstance(events.url, Located):
        hosts = events.url.value.partition("://")[2].split(",")
        if any(_is_loopback(host) for host in hosts):
            yield "the cluster of events", events.url.position


def _is_loopback(address: str) -> bool:
    try:
        host, _ = parse_host(address)
    except ValueError:
        return False
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
