"""NIP-01 filters: which events a subscription wants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from services.nostr.event import Event

FILTER_VALUES_MAX: Final = 10_000
"""Values of one filter, all its lists together: 700 KiB of public keys, what relays with a message limit of 1 MiB still read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """An event matches when every condition holds; an empty list is no condition. Times in seconds since 1970, both ends included.

    `tags` is by the tag's single letter: `{"p": (pubkey,)}` is `#p`. `limit` counts stored events only.
    """

    ids: tuple[str, ...] = ()
    authors: tuple[str, ...] = ()
    kinds: tuple[int, ...] = ()
    tags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    since: int | None = None
    until: int | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        """A filter that no relay would read is a mistake of the caller's."""
        lists = (self.ids, self.authors, self.kinds, *self.tags.values())
        assert sum(len(values) for values in lists) <= FILTER_VALUES_MAX, "split it into several filters"
        assert all(len(letter) == 1 for letter in self.tags), "relays index tags of one letter only"

    def members(self) -> dict[str, Any]:
        """The filter as the object of a REQ message."""
        lists: dict[str, Any] = {"ids": self.ids, "authors": self.authors, "kinds": self.kinds}
        lists.update({f"#{letter}": values for letter, values in sorted(self.tags.items())})
        members = {name: list(values) for name, values in lists.items() if values}
        numbers = {"since": self.since, "until": self.until, "limit": self.limit}
        return {**members, **{name: number for name, number in numbers.items() if number is not None}}

    def resumed(self, since: int) -> Filter:
        """The same filter from `since` on, and never from earlier than it asked for; a limit was for the first time."""
        return replace(self, since=since if self.since is None else max(since, self.since), limit=None)

    def matches(self, event: Event) -> bool:
        """Whether the relay was right to send the event."""
        return (
            (not self.ids or event.id in self.ids)
            and (not self.authors or event.pubkey in self.authors)
            and (not self.kinds or event.kind in self.kinds)
            and (self.since is None or event.created_at >= self.since)
            and (self.until is None or event.created_at <= self.until)
            and all(_has(event, letter, values) for letter, values in self.tags.items() if values)
        )


def _has(event: Event, letter: str, values: tuple[str, ...]) -> bool:
    """Whether one of the event's tags of this letter has one of the values."""
    return any(len(tag) > 1 and tag[0] == letter and tag[1] in values for tag in event.tags)
