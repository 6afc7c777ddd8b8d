"""What is exposed now: two files that are replaced while the server runs, and read again when that happened."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import descriptor_pb2
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha.reflection import aio

from generator.introspection.descriptors import cut_down
from generator.introspection.exposure import Exposure
from generator.introspection.reflection import reflection_servicer

Stamp = tuple[tuple[int, int, int], ...]
LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposed:
    """One state of the two files."""

    clusters: dict[str, str]
    """Protobuf service to the gateway's cluster behind it."""
    reflection: aio.ReflectionServicer


class Source:
    """Reads the files. Raises OSError, ValueError, KeyError, DecodeError and TypeError for bad ones, at the start only."""

    def __init__(self, *, descriptor_set: Path, exposure: Path) -> None:
        self._descriptor_set = descriptor_set
        self._exposure = exposure
        self._stamp = self._look()
        self._exposed = self._read()

    def current(self) -> Exposed:
        """Give what is exposed now; files that do not fit each other are half of a change: the state before them stays."""
        try:
            stamp = self._look()
            if stamp != self._stamp:
                self._exposed = self._read()
                self._stamp = stamp
        except (OSError, ValueError, KeyError, TypeError, DecodeError) as error:
            LOG.warning("what is exposed stays as it was: %s", error)
        return self._exposed

    def _look(self) -> Stamp:
        """Tell the files apart from later ones: each is written beside its place and moved there."""
        found = (path.stat() for path in (self._descriptor_set, self._exposure))
        return tuple((status.st_ino, status.st_mtime_ns, status.st_size) for status in found)

    def _read(self) -> Exposed:
        exposure = Exposure.from_json(self._exposure.read_bytes())
        files = descriptor_pb2.FileDescriptorSet.FromString(self._descriptor_set.read_bytes())
        methods = {service.name: service.methods for service in exposure.services}
        return Exposed(
            clusters={service.name: service.cluster for service in exposure.services},
            reflection=reflection_servicer(cut_down(files, methods)),
        )
