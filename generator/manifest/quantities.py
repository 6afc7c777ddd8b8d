"""Kinds of value that say how much: parts of a processor and bytes, spelled as Kubernetes spells them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from generator.manifest.finding import Reporter, quoted
from generator.manifest.kinds import BROKEN, Broken, Kind, wrong_type
from generator.manifest.nodes import Node, ScalarKind, ScalarNode
from generator.manifest.values import Located

BYTES = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
"""Units of memory."""
_CPU = re.compile(r"([0-9]{1,5})m|([0-9]{1,3})(?:\.([0-9]{1,3}))?")
_MEMORY = re.compile(r"([0-9]{1,9})(Ki|Mi|Gi|Ti)")
_MEMORY_LOOSE = re.compile(r"([0-9]{1,9})\s*([kmgt])i?b?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu(Kind):
    """Parts of a processor, as integer thousandths."""

    millis_min: int
    millis_max: int
    word: str = "cores like 2 or 0.5, or thousandths of one like 250m"
    placeholder: Any = None

    def load(self, node: Node, reporter: Reporter, where: str) -> Located[int] | Broken:
        """See Kind."""
        scalars = (ScalarKind.STRING, ScalarKind.INTEGER, ScalarKind.FLOAT)
        if not isinstance(node, ScalarNode) or node.kind not in scalars:
            return wrong_type(node, reporter, where, self.word)
        match = _CPU.fullmatch(node.text)
        if match is None:
            message = f"{where}: {quoted(node.text)} is no part of a processor"
            cause = "it is a number of cores with at most three decimals, or whole thousandths with an m behind"
            reporter.report("NM107", node.position, message, cause=cause, fix="write 2, 0.5 or 250m")
            return BROKEN
        millis = int(match[1]) if match[1] else int(match[2]) * 1000 + int((match[3] or "").ljust(3, "0"))
        if not self.millis_min <= millis <= self.millis_max:
            cause = f"{node.text} is not between {self.millis_min}m and {self.millis_max // 1000}"
            fix = f"write {self.millis_min}m" if millis < self.millis_min else f"write {self.millis_max // 1000}"
            reporter.report("NM106", node.position, f"{where} is out of range", cause=cause, fix=fix)
            return BROKEN
        return Located(value=millis, position=node.position)

    def schema(self) -> dict[str, Any]:
        """See Kind."""
        text = {"type": "string", "pattern": f"^(?:{_CPU.pattern})$"}
        return {"oneOf": [text, {"type": "number", "exclusiveMinimum": 0, "maximum": self.millis_max // 1000}]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory(Kind):
    """Bytes with a unit, as an integer."""

    bytes_min: int
    bytes_max: int
    word: str = "an amount of memory like 256Mi or 2Gi"
    placeholder: Any = None

    def load(self, node: Node, reporter: Reporter, where: str) -> Located[int] | Broken:
        """See Kind."""
        if not isinstance(node, ScalarNode) or node.kind in (ScalarKind.NULL, ScalarKind.AMBIGUOUS, ScalarKind.BOOLEAN):
            return wrong_type(node, reporter, where, self.word)
        match = _MEMORY.fullmatch(node.text)
        if match is None:
            cause = "memory is a whole number and a unit (Ki, Mi, Gi, Ti) without a space"
            message = f"{where}: {quoted(node.text)} is no amount of memory"
            reporter.report("NM107", node.position, message, cause=cause, fix=memory_fix(node.text))
            return BROKEN
        amount = int(match[1]) * BYTES[match[2]]
        if not self.bytes_min <= amount <= self.bytes_max:
            low, high = format_bytes(self.bytes_min), format_bytes(self.bytes_max)
            cause = f"{node.text} is not between {low} and {high}"
            fix = f"write {low if amount < self.bytes_min else high}"
            reporter.report("NM106", node.position, f"{where} is out of range", cause=cause, fix=fix)
            return BROKEN
        return Located(value=amount, position=node.position)

    def schema(self) -> dict[str, Any]:
        """See Kind."""
        return {"type": "string", "pattern": f"^(?:{_MEMORY.pattern})$"}


def memory_fix(text: str) -> str:
    """Say what the user probably meant with an amount that is none."""
    match = _MEMORY_LOOSE.fullmatch(text.strip())
    if match is not None:
        return f"write {match[1]}{match[2].upper()}i"
    return "write 256Mi or 2Gi"


def format_bytes(amount: int) -> str:
    """Bytes in the largest unit that is exact: 268435456 is `256Mi`."""
    for unit, factor in reversed(BYTES.items()):
        if amount and amount % factor == 0:
            return f"{amount // factor}{unit}"
    return str(amount)
