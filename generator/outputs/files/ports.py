"""Which ports each workload has where nobody runs the mesh to find free ones: fixed by the manifest alone.

A service has a slot, found by a hash of its name and the mesh's; each further replica has the same slot one layer up. So more or
fewer replicas of anything move no port, and a new service moves none either, unless it takes the very slot that a name behind it in
the alphabet had. Ports that the manifest names are nobody's slot.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from generator.model import Mesh
from generator.model.events import EVENTS
from generator.model.mesh import GATEWAY

PORT_FIRST = 21_000
PORT_MAX = 65_535
PORTS_PER_SLOT = 4
"""Inbound, scrape, and two for an application without Unix sockets."""
SLOTS = (PORT_MAX + 1 - PORT_FIRST) // PORTS_PER_SLOT
WIDTH_MIN = 128
"""Slots of a layer: up to here another service changes nothing for the others; then the layers grow to the next power of two."""
SPARE_FIRST = 20_000
"""From here to the first slot are the ports of connections to hosts outside; the hash of who connects where finds them."""


class Ports:
    """The ports of one mesh. Raises ValueError when there are more replicas than slots."""

    def __init__(self, mesh: Mesh) -> None:
        self._taken = set(mesh.written_ports)
        counts = {service.name: service.replicas for service in mesh.services} | {GATEWAY: 1}
        if mesh.events is not None:  # then no service has this name
            counts[EVENTS] = 1
        self._slots = _slots(mesh.name, counts, self._taken)

    def port(self, workload: str, index: int, offset: int) -> int:
        """The port at this place in the slot of a replica; the gateway and the server of events are replicas 0."""
        return PORT_FIRST + self._slots[workload, index] * PORTS_PER_SLOT + offset

    def spare(self, user: str) -> int:
        """A port for one connection of an application without Unix sockets. Raises ValueError when there is none."""
        room = PORT_FIRST - SPARE_FIRST
        for port in _from(_hash(user) % room, room):
            if SPARE_FIRST + port not in self._taken:
                self._taken.add(SPARE_FIRST + port)
                return SPARE_FIRST + port
        raise ValueError(f"more than {room} connections to hosts outside have too few ports on one machine")


def _slots(mesh: str, counts: Mapping[str, int], written: set[int]) -> dict[tuple[str, int], int]:
    """The slot of each replica: its own where that exists and is free, or else the first that nobody wants."""
    names = sorted(counts)
    width = max(WIDTH_MIN, 1 << (len(names) - 1).bit_length())
    bases = _bases(mesh, names, width)
    unusable = {(port - PORT_FIRST) // PORTS_PER_SLOT for port in written if port >= PORT_FIRST}
    wanted = {(name, index): index * width + bases[name] for name in names for index in range(counts[name])}
    found = {key: slot for key, slot in wanted.items() if slot < SLOTS and slot not in unusable}
    taken = unusable.union(found.values())
    free = (slot for slot in reversed(range(SLOTS)) if slot not in taken)
    for key in sorted(wanted.keys() - found.keys(), key=lambda key: (key[1], key[0])):
        slot = next(free, None)
        if slot is None:
            raise ValueError(f"a mesh of more than {SLOTS} replicas has too few ports on one machine")
        found[key] = slot
    return found


def _bases(mesh: str, names: Iterable[str], width: int) -> dict[str, int]:
    bases: dict[str, int] = {}
    taken: set[int] = set()
    for name in names:
        bases[name] = next(slot for slot in _from(_hash(f"{mesh} {name}") % width, width) if slot not in taken)
        taken.add(bases[name])
    return bases


def _from(start: int, size: int) -> Iterable[int]:
    """Every number below `size`, from `start` on and round."""
    return (*range(start, size), *range(start))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
