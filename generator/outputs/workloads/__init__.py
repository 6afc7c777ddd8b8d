"""What each process of a mesh is: one description, from which every output takes what it starts, writes or mounts."""

from generator.outputs.workloads.applications import DATABASE_URL_FILE, application, takes_database
from generator.outputs.workloads.description import (
    Condition,
    Dependency,
    Minted,
    Part,
    Place,
    Process,
    Program,
    Resolve,
    SecretFile,
    Where,
    Word,
    resolved,
)
from generator.outputs.workloads.helpers import (
    INTROSPECTION,
    event_server,
    gateway,
    has_event_server,
    introspection,
    sidecar,
)
from generator.outputs.workloads.whole import describe

__all__ = [
    "DATABASE_URL_FILE",
    "INTROSPECTION",
    "Condition",
    "Dependency",
    "Minted",
    "Part",
    "Place",
    "Process",
    "Program",
    "Resolve",
    "SecretFile",
    "Where",
    "Word",
    "application",
    "describe",
    "event_server",
    "gateway",
    "has_event_server",
    "introspection",
    "resolved",
    "sidecar",
    "takes_database",
]
