"""Two made-up placements of a replica, with nothing in common, to learn what a sidecar takes from its placement as it is.

They differ in length, depth, suffix and kind of address: whatever a template or its view does with a path or a port other
than to write it shows as a difference that is no input (`generator.resources.families`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from generator.model import ReplicaPlacement, SocketAddress, UnixAddress
from generator.render.templates import LONE_SURROGATE
from generator.resources import Scalar, UnliftableError

FIRST, SECOND = 0, 1
HOSTS = ("198.51.100.{}", "2001:db8:7::{}:5")
INDEXES = (7_310_001, 842_002)
PORTS = (40_961, 5_173)
PATHS = ("/one/{0}/first.{0}", "/2/probe-{0}/of/nipmesh/{0}-last")
NUMBER_FIRST = 17


class ProbeIndex(int):
    """The index of a made-up replica: it can be written into a name, and nothing else can be told from it."""

    def _refuse(self, *_: object) -> NoReturn:
        raise UnliftableError("something other than a name depends on a replica's index")

    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __hash__ = __bool__ = __index__ = _refuse
    __add__ = __sub__ = __mul__ = __mod__ = __floordiv__ = __truediv__ = __neg__ = _refuse
    __radd__ = __rsub__ = __rmul__ = __rmod__ = __rfloordiv__ = __rtruediv__ = _refuse


def kind_of(replica: ReplicaPlacement) -> tuple[object, ...]:
    """What replicas of one family have in common: every field that is no input, and of the addresses their kind."""
    return tuple(_kind(value) for name, value in _fields(replica) if name != "index")


def inputs_of(replica: ReplicaPlacement) -> tuple[Scalar, ...]:
    """A replica's own inputs, in the order of its fields."""
    own = (value for name, value in _fields(replica) if name != "index")
    return (int.__int__(replica.index), *(scalar for value in own for scalar in _scalars(value)))


def are_plain(inputs: tuple[Scalar, ...]) -> bool:
    """Whether these inputs can stand for a probe's: paths from the root on, no empty text, no half a character."""
    texts = [value for value in inputs if isinstance(value, str)]
    return all(text and text not in {".", "/"} and not LONE_SURROGATE.search(text) for text in texts)


def probe(replica: ReplicaPlacement, which: int) -> ReplicaPlacement:
    """The first or the second made-up replica of this one's kind."""
    numbers = iter(range(NUMBER_FIRST, NUMBER_FIRST + len(inputs_of(replica))))
    changes = {name: _made_up(value, which, numbers) for name, value in _fields(replica)}
    return dataclasses.replace(replica, **{**changes, "index": ProbeIndex(INDEXES[which])})


def _fields(replica: ReplicaPlacement) -> Iterator[tuple[str, Any]]:
    return ((field.name, getattr(replica, field.name)) for field in dataclasses.fields(replica))


def _kind(value: Any) -> object:
    if isinstance(value, tuple):
        return tuple(_kind(item) for item in value)
    return type(value) if isinstance(value, SocketAddress | UnixAddress | Path) else value


def _scalars(value: Any) -> Iterator[Scalar]:
    if isinstance(value, tuple):
        for item in value:
            yield from _scalars(item)
    elif isinstance(value, SocketAddress):
        yield value.host
        yield value.port
    elif isinstance(value, UnixAddress):
        yield str(value.path)
    elif isinstance(value, Path):
        yield str(value)


def _made_up(value: Any, which: int, numbers: Iterator[int]) -> Any:
    """The same value with an input of its own for each path and address."""
    if isinstance(value, tuple):
        return tuple(_made_up(item, which, numbers) for item in value)
    if isinstance(value, SocketAddress):
        number = next(numbers)
        return SocketAddress(host=HOSTS[which].format(number), port=PORTS[which] + number * 2)
    if isinstance(value, UnixAddress):
        return UnixAddress(path=Path(PATHS[which].format(f"input{next(numbers)}x")))
    return Path(PATHS[which].format(f"input{next(numbers)}x")) if isinstance(value, Path) else value
