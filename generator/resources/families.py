"""Workloads that differ in a few texts and numbers only: the replicas of one service.

Two members are made in full, from inputs that have nothing in common. Where they differ, each difference must be an
input that was put in as it is; then every other member is the first one with its own inputs in these places. What
differs in any other way (an input that was measured, compared, cut or hashed) makes no family.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from json.encoder import encode_basestring_ascii

from generator.resources.holes import Leaf, Scalar
from generator.resources.resource import Resource, WorkloadResources
from generator.resources.texts import Form, encoded, version_of_text

KINDS = ("listeners", "clusters", "routes", "endpoints", "secrets")


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """What a member was made from: texts that JSON writes as they are, and integers; none is part of another."""

    values: tuple[Scalar, ...]
    pattern: re.Pattern[str]

    @classmethod
    def of(cls, values: tuple[Scalar, ...]) -> Inputs:
        """Take the inputs of one of the two members that are made in full."""
        words = [str(value) for value in values]
        assert len({*words}) == len(words), words
        assert all(encode_basestring_ascii(word) == f'"{word}"' for word in words), words
        return cls(values, re.compile("|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))))

    def form(self, text: str) -> Form:
        """Cut a text where an input stands in it."""
        places = {str(value): index for index, value in enumerate(self.values)}
        pieces, order, end = [], [], 0
        for found in self.pattern.finditer(text):
            pieces.append(text[end : found.start()])
            order.append(places[found[0]])
            end = found.end()
        return Form((*pieces, text[end:]), tuple(order))


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """One value that follows from the inputs: an integer is an input itself, a text has inputs in it."""

    form: Form
    is_integer: bool

    def value(self, inputs: Sequence[Scalar], words: Sequence[str]) -> Scalar:
        """The value for a member's inputs; `words` are the same as texts."""
        return inputs[self.form.order[0]] if self.is_integer else self.form.fill(words)


@dataclass(frozen=True, slots=True, eq=False)
class Mould:
    """One resource of the family: where its values are those of the places, and its canonical JSON between them."""

    first: Resource
    holes: tuple[tuple[int, int], ...]
    """(hole of the shape, place of the family)."""
    canonical: Form
    named_by: int | None
    """The place of its name, where that follows from the inputs."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Member:
    """How a workload came to be."""

    family: Family
    inputs: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Family:
    """Two members in full, and how all others follow from their inputs."""

    first: WorkloadResources
    second: WorkloadResources
    first_inputs: Inputs
    second_inputs: Inputs
    places: tuple[Place, ...]
    leaves: tuple[tuple[int, Leaf], ...]
    """(place, what takes its value): each pair once."""
    bootstrap: Mould | Resource
    moulds: dict[str, tuple[Mould | Resource, ...]]
    """By kind; resources that are the same for all stand there themselves."""
    _texts: dict[str, Form | None] = field(default_factory=dict)

    def member(self, name: str, inputs: tuple[Scalar, ...]) -> WorkloadResources | None:
        """The workload of these inputs; None when one of its values is not to be had."""
        words = [str(value) for value in inputs]
        values = [place.value(inputs, words) for place in self.places]
        if not all(leaf.takes(values[place]) for place, leaf in self.leaves):
            return None
        texts = encoded(values)
        made = {kind: tuple(_poured(mould, values, texts) for mould in self.moulds[kind]) for kind in KINDS}
        bootstrap = _poured(self.bootstrap, values, texts)
        workload = WorkloadResources(name=name, bootstrap=bootstrap, **made)
        workload.made_by(Member(family=self, inputs=inputs))
        return workload

    def text(self, key: str, member: Member, write: Callable[[WorkloadResources], str]) -> str | None:
        """What `write` writes of a member, without writing it; None when that does not follow from the inputs.

        `key` stands for `write`, which writes JSON.
        """
        if key not in self._texts:
            form = self.first_inputs.form(write(self.first))
            same = form.fill(_inner(self.second_inputs.values)) == write(self.second)
            self._texts[key] = form if same else None
        found = self._texts[key]
        return None if found is None else found.fill(_inner(member.inputs))


def _inner(values: Sequence[Scalar]) -> list[str]:
    """Each value as it stands inside JSON: texts without their quotes."""
    return [text[1:-1] if text[0] == '"' else text for text in encoded(values)]


def _poured(mould: Mould | Resource, values: Sequence[Scalar], texts: Sequence[str]) -> Resource:
    if isinstance(mould, Resource):
        return mould
    first = mould.first
    filled = list(first.values)
    for hole, place in mould.holes:
        filled[hole] = values[place]
    return Resource(
        name=first.name if mould.named_by is None else str(values[mould.named_by]),
        version=version_of_text(mould.canonical.fill(texts)),
        shape=first.shape,
        values=tuple(filled),
        uses=first.uses,
    )


def family_of(
    first: WorkloadResources,
    second: WorkloadResources,
    first_inputs: tuple[Scalar, ...],
    second_inputs: tuple[Scalar, ...],
) -> Family | None:
    """The family of two workloads; None when they differ in more than their inputs."""
    builder = _Builder(Inputs.of(first_inputs), Inputs.of(second_inputs))
    bootstrap = builder.mould(first.bootstrap, second.bootstrap)
    moulds = {kind: builder.moulds(getattr(first, kind), getattr(second, kind)) for kind in KINDS}
    sound = {kind: found for kind, found in moulds.items() if found is not None}
    if bootstrap is None or len(sound) < len(KINDS):
        return None
    return Family(
        first=first,
        second=second,
        first_inputs=builder.first,
        second_inputs=builder.second,
        places=tuple(builder.places),
        leaves=tuple(builder.leaves),
        bootstrap=bootstrap,
        moulds=sound,
    )


class _Builder:
    """Collects the places of a family."""

    def __init__(self, first: Inputs, second: Inputs) -> None:
        self.first, self.second = first, second
        self.places: list[Place] = []
        self.numbers: dict[Scalar, int] = {}
        self.leaves: dict[tuple[int, Leaf], None] = {}

    def moulds(self, ones: tuple[Resource, ...], others: tuple[Resource, ...]) -> tuple[Mould | Resource, ...] | None:
        """What all of one kind have in common, in pairs; None when they differ in more than inputs."""
        found = tuple(self.mould(one, other) for one, other in zip(ones, others, strict=False))
        moulds = tuple(mould for mould in found if mould is not None)
        return moulds if len(moulds) == len(ones) == len(others) else None

    def mould(self, one: Resource, other: Resource) -> Mould | Resource | None:
        """What both have in common; None when they differ in more than inputs."""
        if one is other or (one.type is other.type and one == other):
            return one
        if one.shape is not other.shape or one.uses != other.uses:
            return None
        keys = {key for found in one.shape.keyed for key in found if isinstance(key, int)}
        holes: list[tuple[int, int]] = []
        for hole, (mine, theirs) in enumerate(zip(one.values, other.values, strict=True)):
            if mine == theirs:
                continue
            place = self._place(mine, theirs)
            if place is None or hole in keys:
                return None
            self.leaves[place, one.shape.leaves[hole]] = None
            holes.append((hole, place))
        return Mould(one, tuple(holes), _between(one, dict(holes)), self._named_by(one, other))

    def _named_by(self, one: Resource, other: Resource) -> int | None:
        return None if one.name == other.name else self.numbers[one.name]

    def _place(self, mine: Scalar, theirs: Scalar) -> int | None:
        """Number the place of a value, when the second's differs from the first's by its inputs alone."""
        if mine not in self.numbers:
            place = Place(self.first.form(str(mine)), type(mine) is int)
            if place.is_integer and place.form.pieces != ("", ""):
                return None
            self.numbers[mine] = len(self.places)
            self.places.append(place)
        number = self.numbers[mine]
        words = [str(value) for value in self.second.values]
        same = type(mine) is type(theirs) and self.places[number].value(self.second.values, words) == theirs
        return number if same else None


def _between(resource: Resource, places: dict[int, int]) -> Form:
    """The canonical JSON of a resource, open at the places alone."""
    whole, values = resource.shape.canonical(resource.values), encoded(resource.values)
    pieces, order = [whole.pieces[0]], []
    for hole, piece in zip(whole.order, whole.pieces[1:], strict=True):
        if hole in places:
            order.append(places[hole])
            pieces.append(piece)
        else:
            pieces[-1] += values[hole] + piece
    return Form(tuple(pieces), tuple(order))
