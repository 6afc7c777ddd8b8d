"""A resource with holes: decoded, checked and written once, then filled in as often as there are values.

Two replicas' sidecars differ in paths, ports and names, two services' in names and numbers; their shape is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from generator.resources.decode import leaves_of
from generator.resources.holes import MARK, TEXT, Leaf, Scalar, UnliftableError
from generator.resources.kinds import ResourceType
from generator.resources.parts import Given, Uses, canonical_form, given_at, part
from generator.resources.texts import Form, compact
from generator.resources.uses import references

ORDERS_MAX = 16
"""Orders of keys that are remembered for one shape; lists of callers are sorted by name, so that one does it."""

Order = tuple[tuple[Given, ...], ...]
NAME_PATHS = {ResourceType.BOOTSTRAP: ("node", "id"), ResourceType.ENDPOINTS: ("cluster_name",)}
"""Where the name stands by which other resources refer to one, if not at `name`; a bootstrap goes by its node's id."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shape:
    """What all resources that differ in their holes only have in common."""

    kind: ResourceType
    tree: dict[str, Any]
    """JSON with holes that have no numbers."""
    leaves: tuple[Leaf, ...]
    """What each hole takes."""
    wire: Form
    """JSON in the template's order."""
    name: Given
    uses: Uses
    keyed: tuple[tuple[Given, ...], ...]
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
            found = canonical_form(self.tree, values)
            if len(self._canonical) < ORDERS_MAX:
                self._canonical[order] = found
        return found


def shape_of(kind: ResourceType, tree: dict[str, Any]) -> Shape:
    """Check a resource with holes, which need no numbers.

    Raises ResourceError when no value would make it good, and UnliftableError when that depends on the values.
    """
    leaves = leaves_of(kind.value, tree, kind.short)
    known = part(tree)
    if len(leaves) != known.holes:
        raise UnliftableError("a hole was not decoded")
    return Shape(
        kind=kind,
        tree=tree,
        leaves=leaves,
        wire=Form(tuple(known.wire.split(MARK)), tuple(range(known.holes))),
        name=given_at(tree, name_path(kind)),
        uses=known.uses,
        keyed=known.keyed,
    )


def whole(kind: ResourceType, body: dict[str, Any]) -> Shape:
    """The shape of a resource without a hole, which was decoded before."""
    uses = tuple(sorted(set(references(body))))
    return Shape(
        kind=kind,
        tree=body,
        leaves=(),
        wire=Form((compact(body),), ()),
        name=name_of(kind, body),
        uses=uses,
        keyed=(),
    )


def name_path(kind: ResourceType) -> tuple[str, ...]:
    """Where a resource's name stands."""
    return NAME_PATHS.get(kind, ("name",))


def name_of(kind: ResourceType, body: dict[str, Any]) -> str:
    """The name of a resource; nothing where it has none."""
    found: Any = body
    for key in name_path(kind):
        found = found.get(key, "") if isinstance(found, dict) else ""
    return str(found)


def actual(given: Given, values: Sequence[Scalar]) -> str:
    """The text itself."""
    return str(values[given]) if isinstance(given, int) else given
