"""The examples of the reference, each as a piece of a manifest that stands where it belongs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from textwrap import indent

from generator.manifest.collections import keys_of
from generator.manifest.types import CallsEntry, Manifest, ServiceEntry
from generator.outputs.reference.levels import policies

SERVICE = "orders"
METHOD = "OrderService/PlaceOrder"
"""For what is said about single methods only."""
SAMPLED = ((Manifest, ""), (ServiceEntry, "services.SERVICE."), (CallsEntry, "services.SERVICE.calls.CALLEE."))
"""Records whose keys have samples that are whole pieces of a manifest, and where they stand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One example."""

    subject: str
    """The policy, or the path of keys that it is about."""
    text: str
    """YAML, from the top of a manifest."""
    is_policy: bool


def samples() -> tuple[Sample, ...]:
    """Every example in the order of the reference."""
    return (*_of_keys(), *_of_policies())


def _of_keys() -> Iterator[Sample]:
    for record, path in SAMPLED:
        for name, spec in keys_of(record).items():
            yield from (Sample(subject=path + name, text=text + "\n", is_policy=False) for text in spec.samples)


def _of_policies() -> Iterator[Sample]:
    for name, spec in policies().items():
        yield from (Sample(subject=name, text=_placed(name, text), is_policy=True) for text in spec.samples)


def _placed(policy: str, text: str) -> str:
    above = ["services:", f"  {SERVICE}:", "    traffic:"]
    if policy == "unsafe":
        above += ["      methods:", f"        {METHOD}:"]
    return "\n".join([*above, indent(text, "  " * len(above))]) + "\n"
