"""Checks of events: the place where they are kept, and who hears what of whom."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from generator.analysis.certificates import check_authorities
from generator.analysis.files import check_file
from generator.manifest.events import EventsEntry
from generator.manifest.finding import Position, Reporter, did_you_mean, quoted
from generator.manifest.types import Manifest, ServiceEntry
from generator.manifest.values import Entry, Located
from generator.model.events import EVENTS, NATS_SCHEMES, covers, subject_filter
from generator.model.resolve import parse_host

PLAIN_SCHEMES = {"nats": "tls", "amqp": "amqps", "kafka": "kafka+tls"}
"""Without encryption, and what is written for it."""
OF_NATS = ("admin", "retention", "max_bytes")
"""Keys that have an effect where nipmesh makes the streams."""
OF_A_CLUSTER = ("ca", "credentials", "admin")
"""Keys that say something about a cluster, and nothing about the runner's own server."""
PLACE = "add `events: nats` to the manifest"


def check_events(manifest: Manifest, base: Path, reporter: Reporter) -> None:
    """The place for events is one, and who consumes something hears it from somebody who exists."""
    _check_place(manifest, base, reporter)
    services = {entry.key.value: entry.value for entry in manifest.services}
    for entry in manifest.services:
        if entry.value.version_of is None:
            _check_consumes(entry, services, reporter)
        if entry.value.consumes and manifest.events is None and "events" not in manifest.broken:
            position = entry.value.consumes[0].key.position
            message = f"`{entry.key.value}` consumes events and the mesh has none"
            reporter.report(
                "NM902", position, message, cause="the manifest does not say where they are kept", fix=PLACE
            )


def _check_place(manifest: Manifest, base: Path, reporter: Reporter) -> None:
    written = manifest.events
    if written is None:
        return
    if isinstance(written, Located) or written.url is None:
        _check_reserved(manifest, reporter)
    if not isinstance(written, EventsEntry):
        return
    if written.url is None:
        for name, position in _places(written, OF_A_CLUSTER):
            cause, fix = "the runner's own server has the mesh's certificates and keys", f"remove `{name}`"
            reporter.warn("NM508", position, f"events.{name} has no effect", cause=cause, fix=fix)
        return
    if written.server is not None:
        cause, fix = "events are kept in one place", "keep one of them"
        reporter.report("NM509", written.server.position, "`server` and `url`", cause=cause, fix=fix)
    _check_url(written.url, reporter)
    if not written.url.value.startswith(NATS_SCHEMES):
        for name, position in _places(written, OF_NATS):
            cause = "in RabbitMQ and Kafka services make what they need, with the credentials of their own"
            reporter.warn("NM508", position, f"events.{name} has no effect", cause=cause, fix=f"remove `{name}`")
    _check_cluster(written, written.url, manifest, base, reporter)


def _check_reserved(manifest: Manifest, reporter: Reporter) -> None:
    for entry in manifest.services:
        if entry.key.value == EVENTS:
            cause = "the server of events has this name in identities, folders and logs"
            reporter.report(
                "NM308", entry.key.position, f"`{EVENTS}` is reserved", cause=cause, fix="choose another name"
            )


def _places(entry: EventsEntry, names: tuple[str, ...]) -> Iterator[tuple[str, Position]]:
    for name in names:
        value = getattr(entry, name)
        if value is not None:
            yield name, value[0].key.position if isinstance(value, tuple) else value.position


def _check_url(url: Located[str], reporter: Reporter) -> None:
    scheme, _, rest = url.value.partition("://")
    hosts = re.split("[/?]", rest, maxsplit=1)[0].split(",")
    for host in hosts:
        try:
            parse_host(host)
        except ValueError as error:
            message = f"events.url: {quoted(host)} is not a host and a port"
            fix = "write a host name or an IP address, a colon and a port"
            reporter.report("NM107", url.position, message, cause=quoted(str(error))[1:-1], fix=fix)
            return
    if scheme in PLAIN_SCHEMES and not all(map(_is_loopback, hosts)):
        cause = "whoever is on the way reads and changes events, and sees the credentials of services"
        fix = f"write {PLAIN_SCHEMES[scheme]}://{rest}"
        reporter.warn("NM905", url.position, "no encryption to the cluster of events", cause=cause, fix=fix)


def _is_loopback(host: str) -> bool:
    name = host.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _check_cluster(entry: EventsEntry, url: Located[str], manifest: Manifest, base: Path, reporter: Reporter) -> None:
    check_authorities(entry.ca, base, "events.ca", reporter)
    check_file(entry.admin, base, "events.admin", reporter, private=True)
    if isinstance(entry.credentials, Located):
        check_file(entry.credentials, base, "events.credentials", reporter, private=True)
    elif entry.credentials:
        known = [service.key.value for service in manifest.services if service.value.version_of is None]
        for one in entry.credentials:
            check_file(one.value, base, f"events.credentials.{one.key.value}", reporter, private=True)
            if one.key.value not in known:
                fix = did_you_mean(one.key.value, known, what="service")
                message, cause = f"credentials of {quoted(one.key.value)}", "`services` has no service of this name"
                reporter.report("NM901", one.key.position, message, cause=cause, fix=fix)
    if not isinstance(entry.credentials, tuple):
        cause = "every service has the same credential, or none: the cluster cannot tell who publishes and hears"
        fix = "give each service its own: `credentials: {SERVICE: FILE}`"
        if url.value.startswith(NATS_SCHEMES):
            fix += ", and the cluster the accounts that `nipmesh render` writes"
        reporter.warn("NM905", url.position, "services are the same to the cluster", cause=cause, fix=fix)


def _check_consumes(entry: Entry[ServiceEntry], services: Mapping[str, ServiceEntry], reporter: Reporter) -> None:
    name = entry.key.value
    for hearing in entry.value.consumes:
        publisher = hearing.key
        other = services.get(publisher.value)
        if other is None or other.version_of is not None:
            cause = "`services` has no service of this name"
            if other is not None and other.version_of is not None:
                cause = f"it is a version of `{other.version_of.value}`, and publishes under that name"
            known = [service for service, written in services.items() if written.version_of is None]
            fix = did_you_mean(publisher.value, known, what="service")
            message = f"{quoted(publisher.value)} publishes nothing"
            reporter.report("NM901", publisher.position, message, cause=cause, fix=fix)
        if publisher.value == name:
            cause = "its replicas share one consumer, so an event reaches one of them, which may be the one that published it"
            fix = "act when the event is written, or watch the service's own changes; keep it if a replica is to go on later"
            reporter.warn("NM903", publisher.position, f"`{name}` hears itself", cause=cause, fix=fix)
        _check_types(hearing, reporter)


def _check_types(hearing: Entry[tuple[Located[str], ...]], reporter: Reporter) -> None:
    """Report what is heard twice: a consumer brings each event once."""
    seen: list[Located[str]] = []
    for written in hearing.value:
        filtered = subject_filter("", "", written.value)
        twice = next((one for one in seen if covers(subject_filter("", "", one.value), filtered)), None)
        twice = twice or next((one for one in seen if covers(filtered, subject_filter("", "", one.value))), None)
        if twice is not None:
            message = f"{quoted(written.value)} is listed twice"
            cause = f"{quoted(twice.value)} on line {twice.position.line} overlaps with it"
            reporter.warn("NM904", written.position, message, cause=cause, fix="keep the wider of the two")
        seen.append(written)
