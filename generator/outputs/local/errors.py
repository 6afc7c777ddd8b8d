"""What can go wrong with a change of a running mesh.

OperationError
├── NotReadyError     a replica does not become ready
└── RefusedError      an Envoy does not take its configuration
"""

from __future__ import annotations

from generator.outputs.files.versions import Key


class OperationError(Exception):
    """The operation cannot be done; the message says why."""


class NotReadyError(OperationError):
    """A replica does not become ready; the message has its last log lines."""

    def __init__(self, workload: str, message: str) -> None:
        super().__init__(message)
        self.workload = workload


class RefusedError(OperationError):
    """An Envoy does not take its configuration; `words` are Envoy's own."""

    def __init__(self, *, workload: str, key: Key, words: str) -> None:
        super().__init__(f"{workload} refuses its {' '.join(key).strip()}: {words}")
        self.workload = workload
        self.key = key
        self.words = words
