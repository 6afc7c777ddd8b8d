"""What can be wrong with a resource.

The tree::

    Exception
    ├── ResourceError              a resource is not what Envoy's protobufs say: a fault of the generator or its templates
    └── DescriptorsMissingError    the installation lacks Envoy's descriptor set
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PROBLEMS_SHOWN_MAX = 20
"""One wrong template breaks every resource; the first few say it all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong, and where."""

    path: str
    """For example `Cluster outbound_nip: circuit_breakers.thresholds[0].max_requests`."""
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


class ResourceError(Exception):
    """At least one resource is wrong; `problems` names all of them."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        assert problems, "an error without a problem"
        self.problems = tuple(problems)
        shown = [str(problem) for problem in problems[:PROBLEMS_SHOWN_MAX]]
        if len(problems) > PROBLEMS_SHOWN_MAX:
            shown.append(f"and {len(problems) - PROBLEMS_SHOWN_MAX} more")
        super().__init__("\n".join(shown))


class DescriptorsMissingError(Exception):
    """`generator/resources/data/envoy.binpb` is not there: nipmesh was not installed, only copied."""
