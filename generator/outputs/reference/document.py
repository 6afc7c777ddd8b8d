"""The reference as one Markdown document."""

from __future__ import annotations

from collections.abc import Iterator

from generator.manifest.codes import CODES
from generator.manifest.collections import Key, RecordOf
from generator.manifest.terms import ROOM_TERMS, TERMS, Terms
from generator.manifest.types import MANIFEST, ExternalEntry, GatewayEntry, Manifest, ServiceEntry
from generator.outputs.reference import computed
from generator.outputs.reference.levels import PLACES, levels, policies
from generator.outputs.reference.samples import Sample, samples
from generator.outputs.reference.tables import Row, key_rows, key_table, table, value_of

HEAD = """# Reference of the manifest

This file is written by `nipmesh schema --reference`, from the declarations that load the manifest and the functions that
compute its defaults. Every example is rendered and shown to Envoy by a test.

- [All keys](#all-keys): [the mesh](#the-mesh), [services](#services), [the gateway](#the-gateway),
  [external hosts](#external-hosts)
- [Traffic policies](#traffic-policies){policies}
- [Computed defaults](#computed-defaults)
- [Findings](#findings)
"""
LEVELS = """A policy is written below a key `traffic`. What is closer to a call wins: the method's own word, then that of
`Service/*`, the service's, the mesh's. A setting that was written for many methods holds for those that it fits and whose
protobuf allows it; one that was written for a single method and does not fit is an error, with its line. An edge (one
caller's calls of one service) may be stricter than the service, never looser.
"""
ROOMS = (
    ("The mesh", "", MANIFEST, frozenset({"services", "gateway", "external", "traffic"}), Manifest),
    ("Services", "services.SERVICE", RecordOf(record=ServiceEntry, word=""), frozenset({"traffic"}), ServiceEntry),
    ("The gateway", "gateway", RecordOf(record=GatewayEntry, word=""), frozenset({"traffic"}), GatewayEntry),
    ("External hosts", "external.NAME", RecordOf(record=ExternalEntry, word=""), frozenset({"traffic"}), ExternalEntry),
)
"""Title, path, kind, keys that are told elsewhere, record."""


def reference() -> str:
    """The whole document; the same on every machine."""
    listed = "".join(f"\n  - [{name}](#{name})" for name in policies())
    parts = [HEAD.format(policies=listed), "## All keys\n", *_rooms(), *_traffic(), *_computed(), *_findings()]
    return "\n".join(parts)


def _rooms() -> Iterator[str]:
    shown = samples()
    for title, path, kind, below, record in ROOMS:
        yield f"### {title}\n"
        yield f"{record.__doc__}\n"
        yield key_table(key_rows(path, kind, below=below))
        for sample in shown:
            if not sample.is_policy and _room_of(sample) == title:
                yield f"Example, `{sample.subject}`:\n"
                yield _fenced(sample)
                yield _elsewhere(ROOM_TERMS[sample.subject])


def _room_of(sample: Sample) -> str:
    if sample.subject == "external":
        return "External hosts"
    return "Services" if sample.subject.startswith("services.") else "The mesh"


def _fenced(sample: Sample) -> str:
    return f"```yaml\n{sample.text}```\n"


def _traffic() -> Iterator[str]:
    yield "## Traffic policies\n"
    yield LEVELS
    names = [place.name for place in PLACES]
    rows = (
        (f"[{policy}](#{policy})", *("yes" if name in levels(policy) else "" for name in names))
        for policy in policies()
    )
    yield table(("Policy", *names), rows)
    yield table(("Level", "Written at"), ((place.name, f"`{place.path}`") for place in PLACES))
    yield "The gateway's edges are written below `gateway.expose` as a service's below `calls`.\n"
    for policy, spec in policies().items():
        yield from _section(policy, spec)


def _section(policy: str, spec: Key) -> Iterator[str]:
    terms = TERMS[policy]
    yield f"### {policy}\n"
    yield _meaning(spec)
    yield f"Levels: {', '.join(levels(policy))}.\n"
    yield key_table(_policy_rows(policy, spec))
    reasons = computed.reasons(policy)
    if reasons:
        yield "Defaults, with 2 replicas:\n"
        yield "".join(f"- {reason}\n" for reason in reasons)
    elif policy in computed.BY_METHOD:
        yield "The default depends on the kind of the method: see [computed defaults](#computed-defaults).\n"
    for sample in samples():
        if sample.is_policy and sample.subject == policy:
            yield _fenced(sample)
    yield _elsewhere(terms)


def _meaning(spec: Key) -> str:
    """The key's sentence, and what its record adds to it."""
    doc = " ".join((spec.kind.record.__doc__ or "").split()) if isinstance(spec.kind, RecordOf) else ""
    if not doc or doc.startswith(spec.doc.rstrip(".")):
        return f"{doc or spec.doc}\n"
    return f"{spec.doc}\n" if spec.doc.startswith(doc.rstrip(".")) else f"{spec.doc}\n\n{doc}\n"


def _policy_rows(policy: str, spec: Key) -> Iterator[Row]:
    yield policy, value_of(spec.kind), spec.default or "computed", spec.doc
    yield from key_rows(policy, spec.kind)


def _elsewhere(terms: Terms) -> str:
    envoy = ", ".join(f"`{word}`" for word in terms.envoy)
    names = f"- Istio: {terms.istio or 'no name for it'}\n- Gateway API: {terms.gateway_api or 'no name for it'}\n"
    return f"{names}- Envoy, {terms.where}: {envoy}\n"


def _computed() -> Iterator[str]:
    yield "## Computed defaults\n"
    yield "`nipmesh explain` prints each one of a mesh, with its reason. From the replica count of the service:\n"
    yield computed.by_replicas()
    yield "From the kind of the method and its `idempotency_level`, with certificates that live 1h:\n"
    yield computed.by_method()
    yield "From the call graph (`health_check` is no key: it follows from who calls):\n"
    yield computed.by_graph()
    yield "From nothing:\n"
    yield computed.always()


def _findings() -> Iterator[str]:
    yield "## Findings\n"
    yield "`nipmesh check` names each by its code, with line, column, cause and fix.\n"
    yield table(("Code", "Title"), ((code, title) for code, title in CODES.items()))
