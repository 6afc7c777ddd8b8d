"""A resource with holes: decoded, checked and written once, then filled in as often as there are values.

Two replicas' sidecars differ in paths, ports and names, two services' in names and numbers; their shape is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from generator.resources.decode import leaves_of
from generator.resources.holes import TEXT, Hole, KeyHole, Leaf, Scalar, UnliftableError, numbered
from generator.resources.kinds import ResourceType
from generator.resources.texts import Form, compact, form_of
from generator.resources.uses import references

ORDERS_MAX = 16
"""Orders of keys that are remembered for one shape; lists of callers are sorted by name, so that one does it."""

Order = tuple[tuple[str, ...], ...]
Given = Hole | str
"""A name that stands in the template, or the hole in which it will."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shape:
    """What all resources that differ in their holes only have in common."""

    kind: ResourceType
    tree: dict[str, Any]
    leaves: tuple[Leaf, ...]
    """What each hole takes."""
    wire: Form
    """JSON in the template's order."""
    name: Given
    uses: tuple[tuple[str, Given], ...]
    keyed: tuple[tuple[str, ...], ...]
    """The keys of each object of which one is a hole."""
    _canonical: dict[Order, Form] = field(default_factory=dict)

    def takes(self, values: Sequence[Scalar]) -> bool:
        """Whether each value may stand in its hole, and no key stands twice."""
        if len(values) != len(self.leaves):
            return False
        for leaf, value in zip(self.leaves, values, strict=True):
            if leaf is TEXT:
                if type(value) is not str:
                    return False
            elif value not in leaf.passed and not leaf.takes(value):
                return False
        return all(len({actual(key, values) for key in keys}) == len(keys) for keys in self.keyed)

    def canonical(self, values: Sequence[Scalar]) -> Form:
        """JSON with its keys sorted, for the version; the values decide the order where they are keys."""
        order = tuple(tuple(sorted(keys, key=lambda key: actual(key, values))) for keys in self.keyed)
        found = self._canonical.get(order)
        if found is None:
            found = form_of(_sorted(self.tree, values))
            if len(self._canonical) < ORDERS_MAX:
                self._canonical[order] = found
        return found


def shape_of(kind: ResourceType, tree: dict[str, Any]) -> Shape:
    """Check a resource with holes, which need no numbers.

    Raises ResourceError when no value would make it good, and UnliftableError when that depends on the values.
    """
    leaves = leaves_of(kind.value, tree, kind.short)
    own, holes = numbered(tree)
    wire = form_of(own)
    if wire.order != tuple(range(holes)) or len(leaves) != holes:
        raise UnliftableError("a hole is missing, double, or out of turn")
    return Shape(
        kind=kind,
        tree=own,
        leaves=leaves,
        wire=wire,
        name=given_name(kind, own),
        uses=tuple(references(own)),
        keyed=tuple(_keyed(own)),
    )


def whole(kind: ResourceType, body: dict[str, Any]) -> Shape:
    """The shape of a resource without a hole, which was decoded before."""
    uses = tuple(sorted(set(references(body))))
    return Shape(
        kind=kind,
        tree=body,
        leaves=(),
        wire=Form((compact(body),), ()),
        name=str(given_name(kind, body)),
        uses=uses,
        keyed=(),
    )


def actual(key: str, values: Sequence[Scalar]) -> str:
    """The key itself."""
    return str(values[key.number]) if type(key) is KeyHole else key


def _sorted(tree: Any, values: Sequence[Scalar]) -> Any:
    if type(tree) is dict:
        return {key: _sorted(tree[key], values) for key in _in_order(tree, values)}
    return [_sorted(item, values) for item in tree] if type(tree) is list else tree


def _in_order(tree: dict[str, Any], values: Sequence[Scalar]) -> list[str]:
    if KeyHole in map(type, tree):
        return sorted(tree, key=lambda key: actual(key, values))
    return sorted(tree)


def _keyed(tree: Any) -> Iterator[tuple[str, ...]]:
    """The keys of each object of which one is a hole."""
    waiting = [tree]
    while waiting:
        found = waiting.pop()
        if type(found) is dict:
            if KeyHole in map(type, found):
                yield tuple(found)
            waiting += found.values()
        elif type(found) is list:
            waiting += found


def given_name(kind: ResourceType, body: dict[str, Any]) -> Any:
    """The name by which other resources refer to this one; a bootstrap goes by its node's id."""
    if kind is ResourceType.BOOTSTRAP:
        return body.get("node", {}).get("id", "")
    return body.get("cluster_name" if kind is ResourceType.ENDPOINTS else "name", "")


def resolved(given: Given, values: Sequence[Scalar]) -> str:
    """The name itself."""
    return str(values[given.number]) if type(given) is Hole else str(given)
