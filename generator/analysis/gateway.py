"""Checks of the gateway: who may enter, what that opens, and what the network would see."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

from generator.analysis.certificates import check_pair
from generator.analysis.files import check_file
from generator.manifest.finding import Reporter, did_you_mean, quoted
from generator.manifest.types import AuthenticationEntry, GatewayEntry, Manifest
from generator.manifest.values import Located
from generator.model import StreamingKind, defaults
from generator.model.links import Links
from generator.model.overrides import Overrides
from generator.model.resolve import parse_listen

JWKS_BYTES_MAX = 256 * 1024
"""A key set is inlined into the gateway's configuration."""


def check_gateway(
    manifest: Manifest, links: Links | None, base: Path, overrides: Overrides, reporter: Reporter
) -> None:
    """All checks of the edge. `links` is None when the protobufs did not compile."""
    gateway = manifest.gateway
    if gateway is None:
        return
    _check_network(gateway, overrides, reporter)
    if gateway.tls is not None:
        check_pair(gateway.tls.certificate, gateway.tls.private_key, base, "gateway.tls", reporter)
    if gateway.authentication is not None:
        _check_issuer(manifest, gateway.authentication, base, reporter)
        if links is not None:
            _check_rules(gateway.authentication, links, reporter)


def _check_network(gateway: GatewayEntry, overrides: Overrides, reporter: Reporter) -> None:
    text = overrides.gateway_listen or (gateway.listen.value if gateway.listen else defaults.GATEWAY_LISTEN)
    try:
        address = ipaddress.ip_address(parse_listen(text)[0])
    except ValueError:
        return  # reported with the addresses of services
    position = gateway.listen.position if gateway.listen else gateway.position
    if gateway.authentication is None and "authentication" not in gateway.broken:
        cause = "whoever reaches the gateway may call everything that it exposes"
        fix = "add `gateway.authentication`"
        reporter.warn("NM406", gateway.position, "no authentication", cause=cause, fix=fix)
    if gateway.public_url is not None and gateway.tls is not None and gateway.public_url.value.startswith("http:"):
        cause, fix = "the gateway serves TLS, clients would speak plaintext", "write https://"
        reporter.warn("NM408", gateway.public_url.position, "public_url is not https", cause=cause, fix=fix)
    if address.is_loopback:
        return
    if gateway.reflection is not None and gateway.reflection.value:
        cause = f"it lists every exposed method to whoever reaches {quoted(text)}"
        fix = "turn `reflection` off outside development"
        reporter.warn("NM405", gateway.reflection.position, "reflection is open", cause=cause, fix=fix)
    if gateway.tls is None and "tls" not in gateway.broken:
        cause = f"tokens and data cross the network of {quoted(text)} in the clear"
        fix = "add `gateway.tls`, or end TLS in front of it"
        reporter.warn("NM407", position, "no encryption towards clients", cause=cause, fix=fix)
    if gateway.public_url is None and address.is_unspecified:
        cause = f"clients do not spell it {quoted(text)}; a login that is bound to another URL is refused"
        fix = "add `gateway.public_url`, e.g. https://api.example.org"
        reporter.warn("NM408", position, "public URL unknown", cause=cause, fix=fix)


def check_internal(manifest: Manifest, links: Links, reporter: Reporter) -> None:
    """Warn of exposed protobuf services that look internal: other services call every method of them."""
    for entry in manifest.gateway.expose if manifest.gateway is not None else ():
        owner = entry.key.value
        called = {
            method for caller, targets in links.calls.items() if caller != owner for method in targets.get(owner, ())
        }
        for service in sorted({method.service for method in links.exposes.get(owner, ())}):
            if not called.issuperset(method for method in links.served[owner] if method.service == service):
                continue
            cause = "services of the mesh call every method of it: it looks internal, and the world may call it too"
            fix = f"remove it from `expose`, unless users call it as well as {_callers(links, owner, service)}"
            reporter.warn("NM410", entry.key.position, f"{service} is exposed", cause=cause, fix=fix)


def _callers(links: Links, owner: str, service: str) -> str:
    names = (
        caller
        for caller, targets in links.calls.items()
        if caller != owner and any(method.service == service for method in targets.get(owner, ()))
    )
    return ", ".join(f"`{name}`" for name in sorted(names))


def _check_issuer(manifest: Manifest, entry: AuthenticationEntry, base: Path, reporter: Reporter) -> None:
    if entry.issuer is None:
        return
    issuer, services = entry.issuer.value, [service.key.value for service in manifest.services]
    foreign = "://" in issuer
    if not foreign and issuer not in services and "services" not in manifest.broken:
        cause = "it is neither a service of this mesh nor a URL"
        fix = did_you_mean(issuer, services, what="service")
        reporter.report("NM401", entry.issuer.position, f"unknown issuer {quoted(issuer)}", cause=cause, fix=fix)
    if foreign and entry.jwks is None and "jwks" not in entry.broken:
        cause = "a foreign issuer's tokens can be verified only with its public keys"
        fix = "save its JSON Web Key Set and add `jwks: FILE`"
        reporter.report("NM402", entry.issuer.position, "no key set", cause=cause, fix=fix)
    if not foreign and entry.jwks is not None:
        cause = f"the keys of {quoted(issuer)} are made and published by nipmesh"
        reporter.report("NM402", entry.jwks.position, "a key set for an own issuer", cause=cause, fix="remove `jwks`")
    if foreign and entry.jwks is not None and check_file(entry.jwks, base, "gateway.authentication.jwks", reporter):
        _check_jwks(entry.jwks, base, reporter)


def _check_jwks(written: Located[str], base: Path, reporter: Reporter) -> None:
    problem, fix = _jwks_problem(base / written.value)
    if problem is not None:
        message = f"{quoted(written.value)} is not a public key set"
        reporter.report("NM402", written.position, message, cause=problem, fix=fix)


def _jwks_problem(path: Path) -> tuple[str | None, str]:
    """Say what is wrong with a key set (RFC 7517) and what helps; (None, "") when nothing is."""
    fix = "save the issuer's JSON Web Key Set, as its `jwks_uri` serves it"
    try:
        with path.open("rb") as file:
            raw = file.read(JWKS_BYTES_MAX + 1)
        parsed = json.loads(raw) if len(raw) <= JWKS_BYTES_MAX else None
    except OSError as error:
        return f"reading it failed: {error.strerror}", "make it readable"
    except (ValueError, RecursionError):
        return "it is not JSON", fix
    keys = parsed.get("keys") if isinstance(parsed, dict) else None
    if not isinstance(keys, list) or not keys or not all(isinstance(item, dict) and "kty" in item for item in keys):
        return f"it has no list `keys` of keys, or more than {JWKS_BYTES_MAX} bytes", fix
    if any("d" in item or item["kty"] == "oct" for item in keys):
        return "it holds a private or shared key, which would be written into configuration", "publish public keys only"
    if not any(item["kty"] == "EC" and item.get("crv", "P-256") == "P-256" for item in keys):
        return "it has no EC key on P-256; tokens are ES256", "add the issuer's ES256 key"
    return None, ""


def _check_rules(entry: AuthenticationEntry, links: Links, reporter: Reporter) -> None:
    public, owners = set(links.public), dict[object, str]()
    for role in entry.roles:
        for method in links.roles.get(role.key.value, ()):
            other = "public" if method in public else owners.get(method)
            if other is not None:
                cause = f"it is in `{other}` as well as in role `{role.key.value}`; a method has one rule"
                message = f"{method.service}/{method.name} has two rules"
                reporter.report("NM404", role.key.position, message, cause=cause, fix="keep one of them")
            owners[method] = role.key.value
    for method in links.public:
        if method.streaming is not StreamingKind.UNARY and entry.public:
            cause = "anybody may hold such streams open; each occupies the gateway and a replica"
            fix = "ask for a token: remove it from `public`"
            message = f"{method.service}/{method.name} streams to everybody"
            reporter.warn("NM409", entry.public[0].position, message, cause=cause, fix=fix)
