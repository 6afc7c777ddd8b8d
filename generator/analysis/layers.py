"""What a manifest says about traffic, sorted by what it is about: mesh, service, method, edge."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from generator.manifest.collections import keys_of
from generator.manifest.finding import Position
from generator.manifest.traffic import CallTraffic, EdgeMethodTraffic
from generator.manifest.values import Entry, Located, Record
from generator.model import Method
from generator.model.links import Layer, Level, Written

ATOMIC = frozenset({"faults", "hedging", "load_balancing.hash_on", "rate_limit", "routing", "session_persistence"})
"""Mappings that replace a farther one as a whole: a mixture of two would be neither."""

Find = Callable[[Located[str]], tuple[Method, ...]]
"""The methods that `Service/Method` or `Service/*` names."""


def flatten(record: Record | None, level: Level) -> Layer:
    """Give every setting of a record by its dotted path of keys; `methods` are no setting."""
    return dict(_settings(record, level, "")) if record is not None else {}


def _settings(record: Record, level: Level, prefix: str) -> Iterable[tuple[str, Written]]:
    for name in keys_of(type(record)):
        value = getattr(record, name)
        if name == "methods" or value is None or value == ():
            continue
        path = prefix + name
        if isinstance(value, Record):
            yield path, Written(value=value, position=value.position, level=level)
            yield from _settings(value, level, f"{path}.")
        elif isinstance(value, Located):
            yield path, Written(value=value.value, position=value.position, level=level)
        else:
            yield path, Written(value=value, position=_position(value[0]), level=level)


def _position(item: Any) -> Position:
    found: Position = item.key.position if isinstance(item, Entry) else item.position
    return found


def merged(*layers: Layer) -> Layer:
    """Lay closer settings over farther ones, the closest last."""
    result: dict[str, Written] = {}
    for layer in layers:
        for path in ATOMIC & layer.keys():
            for old in [known for known in result if known.startswith(f"{path}.")]:
                del result[old]
        result.update(layer)
    return result


def method_layers(
    farther: Layer, methods: Iterable[Method], entries: Iterable[Entry[Any]], find: Find
) -> dict[Method, Layer]:
    """Lay what is written about methods over what is written about all of them."""
    layers: dict[Method, Layer] = dict.fromkeys(methods, farther)
    wildcards_first = sorted(entries, key=lambda item: not is_wildcard(item.key))
    for item in wildcards_first:
        level = Level.WILDCARD if is_wildcard(item.key) else Level.METHOD
        own = flatten(item.value, level)
        for method in find(item.key):
            if method in layers:
                layers[method] = merged(layers[method], own)
    return {method: layer for method, layer in layers.items() if layer}


def about_calls(layer: Layer) -> Layer:
    """The settings of a service's or the mesh's layer that are about single calls."""
    names = {*keys_of(CallTraffic), *keys_of(EdgeMethodTraffic), "routing"}
    return {path: written for path, written in layer.items() if path.partition(".")[0] in names}


def is_wildcard(key: Located[str]) -> bool:
    """Whether it names all methods of a protobuf service."""
    return key.value.endswith("/*")
