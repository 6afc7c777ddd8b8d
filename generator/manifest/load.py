"""From a file to the typed manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from generator.manifest.finding import Reporter
from generator.manifest.kinds import Broken
from generator.manifest.nodes import decode, read_nodes, read_text
from generator.manifest.types import MANIFEST, Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A manifest and the collector of everything found in it so far."""

    manifest: Manifest | None
    """None when there is nothing to look at further; otherwise broken keys hold placeholders."""
    reporter: Reporter


def load_manifest(path: Path) -> Loaded:
    """Read and type a manifest. Never raises for what the file holds; findings are in the reporter."""
    reporter = Reporter(path=str(path), lines=())
    return _from_text(read_text(path, reporter), reporter)


def load_bytes(raw: bytes, *, path: str = "mesh.yaml") -> Loaded:
    """Do the same for bytes in memory."""
    reporter = Reporter(path=path, lines=())
    return _from_text(decode(raw, reporter), reporter)


def _from_text(text: str | None, reporter: Reporter) -> Loaded:
    if text is None:
        return Loaded(manifest=None, reporter=reporter)
    reporter.lines = tuple(text.splitlines())
    node = read_nodes(text, reporter)
    if node is None:
        return Loaded(manifest=None, reporter=reporter)
    manifest = MANIFEST.load(node, reporter, "")
    return Loaded(manifest=None if isinstance(manifest, Broken) else manifest, reporter=reporter)
