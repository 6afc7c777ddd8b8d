"""Two made-up placements of a replica, with nothing in common, to learn what a sidecar takes from its placement as it is.

They differ in length, depth, suffix and kind of address: whatever a template or its view would do with a path or a port,
other than to write it, shows as a difference that is no input (`generator.resources.families`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from generator.model import ReplicaPlacement, SocketAddress, UnixAddress
from generator.render.templates import LONE_SURROGATE
from generator.resources import Scalar

FIRST, SECOND = 0, 1
HOSTS = ("198.51.100.{}", "2001:db8:7::{}:5")
INDEXES = (7_310_001, 842_002)
PORTS = (40_961, 5_173)
NUMBER_FIRST = 17


def kind_of(replica: ReplicaPlacement) -> tuple[object, ...]:
    """What replicas of one family have in common: every field that is no input, and of the addresses their kind."""
    values = ((field.name, getattr(replica, field.name)) for field in dataclasses.fields(replica))
    return tuple(type(value) if _is_input(name, value) else value for name, value in values)


def inputs_of(replica: ReplicaPlacement) -> tuple[Scalar, ...]:
    """A replica's own inputs, in the order of its fields."""
    return tuple(
        scalar
        for field in dataclasses.fields(replica)
        if _is_input(field.name, value := getattr(replica, field.name))
        for scalar in _scalars(value)
    )


def are_plain(inputs: tuple[Scalar, ...]) -> bool:
    """Whether these inputs can stand for a probe's: paths from the root on, no empty text, no half a character."""
    texts = [value for value in inputs if isinstance(value, str)]
    return all(text and text not in {".", "/"} and not LONE_SURROGATE.search(text) for text in texts)


def probe(replica: ReplicaPlacement, which: int) -> ReplicaPlacement:
    """The first or the second made-up replica of this one's kind."""
    changes = {
        field.name: _made_up(field.name, value, which, number)
        for number, field in enumerate(dataclasses.fields(replica), start=NUMBER_FIRST)
        if _is_input(field.name, value := getattr(replica, field.name))
    }
    return dataclasses.replace(replica, **changes)  # type: ignore[arg-type]  # each of its field's type


def _is_input(name: str, value: object) -> bool:
    return name == "index" or isinstance(value, UnixAddress | SocketAddress | Path)


def _scalars(value: object) -> Iterator[Scalar]:
    if isinstance(value, SocketAddress):
        yield value.host
        yield value.port
    elif isinstance(value, UnixAddress):
        yield str(value.path)
    elif isinstance(value, int):
        yield value
    else:
        yield str(value)


def _made_up(name: str, value: object, which: int, number: int) -> object:
    if isinstance(value, SocketAddress):
        return SocketAddress(host=HOSTS[which].format(number), port=PORTS[which] + number * 2)
    if isinstance(value, UnixAddress):
        return UnixAddress(path=_path(name, which))
    return INDEXES[which] if name == "index" else _path(name, which)


def _path(name: str, which: int) -> Path:
    return Path(f"/one/{name}/first.{name}" if which == FIRST else f"/2/probe-{name}/of/nipmesh/{name}-last")
