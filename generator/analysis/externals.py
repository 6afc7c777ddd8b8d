"""Checks of hosts outside the mesh: names, addresses, certificates, and who connects to them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from generator.analysis.certificates import check_authorities, check_pair
from generator.manifest.finding import Reporter, did_you_mean, quoted
from generator.manifest.types import ExternalEntry, Manifest, ServiceEntry
from generator.model.mesh import GATEWAY, SYSTEM_AUTHORITIES
from generator.model.resolve import parse_host


def check_externals(manifest: Manifest, base: Path, reporter: Reporter) -> None:
    """Hosts outside: names, addresses, files, and who connects to them."""
    services = {entry.key.value for entry in manifest.services}
    externals = {entry.key.value: entry.value for entry in manifest.external}
    for entry in manifest.external:
        name, where = entry.key, f"external.{entry.key.value}"
        if name.value in services or name.value == GATEWAY:
            cause, fix = "a service has this name, and calls name their target by it", "choose another name"
            reporter.report("NM316", name.position, f"{quoted(name.value)} is taken", cause=cause, fix=fix)
        _check_external(entry.value, where, base, reporter)
    for service in manifest.services:
        _check_connections(service.value, externals, reporter)
    used = {written.value for service in manifest.services for written in service.value.external}
    used |= {call.key.value for service in manifest.services for call in service.value.calls}
    for entry in manifest.external:
        if entry.key.value not in used | services:
            cause = "no service has it in `external` or `calls`: every connection to it is denied"
            fix = "add it to the services that need it, or remove it"
            reporter.warn("NM310", entry.key.position, f"nobody can reach `{entry.key.value}`", cause=cause, fix=fix)


def _check_connections(service: ServiceEntry, externals: Mapping[str, ExternalEntry], reporter: Reporter) -> None:
    seen: set[str] = set()
    for written in service.external:
        if written.value in seen:
            message = f"{quoted(written.value)} repeats what stands before it"
            reporter.report("NM309", written.position, message, cause="the list has it already", fix="keep one of them")
        seen.add(written.value)
        external = externals.get(written.value)
        if external is not None and not external.serves:
            continue
        cause = "it speaks gRPC: its methods belong into `calls`" if external else "`external` has no such host"
        known = [name for name, other in externals.items() if not other.serves]
        fix = did_you_mean(written.value, known, what="external host without `serves`")
        message = f"{quoted(written.value)} is not to be connected to"
        reporter.report("NM318", written.position, message, cause=cause, fix=fix)


def _check_external(entry: ExternalEntry, where: str, base: Path, reporter: Reporter) -> None:
    if entry.address is not None:
        try:
            parse_host(entry.address.value)
        except ValueError as error:
            message = f"{where}.address: {quoted(entry.address.value)} is not an address"
            fix = "write a host name or an IP address, a colon and a port"
            reporter.report("NM107", entry.address.position, message, cause=str(error), fix=fix)
    if entry.plaintext is not None:
        if entry.tls is not None:
            cause, fix = "`plaintext` says that no TLS is spoken", "keep one of them"
            reporter.report("NM509", entry.tls.position, "`tls` and `plaintext`", cause=cause, fix=fix)
        cause = "whoever is on the way reads and changes what is said"
        fix = "remove `plaintext` as soon as the host speaks TLS"
        reporter.warn("NM318", entry.plaintext.position, "no encryption to a host outside", cause=cause, fix=fix)
    if (
        entry.plaintext is None
        and (entry.tls is None or entry.tls.ca is None)
        and not Path(SYSTEM_AUTHORITIES).exists()
    ):
        cause = f"{SYSTEM_AUTHORITIES} is not there: no certificate of the host can be checked"
        fix = "install the system's certificates, or add `tls: {ca: FILE}`"
        reporter.warn("NM318", entry.position, "no authorities to trust", cause=cause, fix=fix)
    if entry.tls is not None:
        check_authorities(entry.tls.ca, base, f"{where}.tls.ca", reporter)
        check_pair(entry.tls.certificate, entry.tls.private_key, base, f"{where}.tls", reporter)
        if (entry.tls.certificate is None) != (entry.tls.private_key is None):
            cause, fix = "a client proves itself by a certificate and its key", "write both, or neither"
            reporter.report("NM509", entry.tls.position, "half of a client's certificate", cause=cause, fix=fix)
