"""A resource with holes: decoded, checked and written once, then filled in as often as there are values.

Two replicas' sidecars differ in paths, ports and names, two services' in names and numbers; their shape is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from generator.resources.decode import leaves_of
from generator.resources.holes import Hole, Leaf, Scalar, UnliftableError
from generator.resources.kinds import ResourceType
from generator.resources.texts import Form, form_of
from generator.resources.uses import references

Given = Hole | str
"""A name that stands in the template, or the hole in which it will."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shape:
    """What all resources that differ in their holes only have in common."""

    kind: ResourceType
    leaves: tuple[Leaf, ...]
    """What each hole takes."""
    wire: Form
    """JSON in the template's order."""
    canonical: Form
    """JSON with its keys sorted, for the version."""
    name: Given
    uses: tuple[tuple[str, Given], ...]

    def takes(self, values: Sequence[Scalar]) -> bool:
        """Whether each value may stand in its hole."""
        return len(values) == len(self.leaves) and all(
            leaf.takes(value) for leaf, value in zip(self.leaves, values, strict=True)
        )


def shape_of(kind: ResourceType, tree: dict[str, Any], holes: int) -> Shape:
    """Check a resource with so many holes.

    Raises ResourceError when no value would make it good, and UnliftableError when that depends on the values.
    """
    wire = form_of(tree, canonical=False)
    if wire.order != tuple(range(holes)):
        raise UnliftableError("a hole is missing, double, or out of turn")
    leaves = leaves_of(kind.value, tree, kind.short)
    if len(leaves) != holes:
        raise UnliftableError("a hole was not decoded")
    return Shape(
        kind=kind,
        leaves=leaves,
        wire=wire,
        canonical=form_of(tree, canonical=True),
        name=given_name(kind, tree),
        uses=tuple((word, used) for word, used in references(tree)),
    )


def given_name(kind: ResourceType, body: dict[str, Any]) -> Any:
    """The name by which other resources refer to this one; a bootstrap goes by its node's id."""
    if kind is ResourceType.BOOTSTRAP:
        return body.get("node", {}).get("id", "")
    return body.get("cluster_name" if kind is ResourceType.ENDPOINTS else "name", "")


def resolved(given: Given, values: Sequence[Scalar]) -> str:
    """The name itself."""
    return str(values[given.index]) if type(given) is Hole else str(given)
