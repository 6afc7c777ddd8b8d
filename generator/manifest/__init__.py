"""The manifest: YAML with positions, typed, every mistake a finding."""

from generator.manifest.codes import CODES
from generator.manifest.finding import Finding, Position, Reporter, Severity
from generator.manifest.load import Loaded, load_bytes, load_manifest
from generator.manifest.types import Manifest

__all__ = [
    "CODES",
    "Finding",
    "Loaded",
    "Manifest",
    "Position",
    "Reporter",
    "Severity",
    "load_bytes",
    "load_manifest",
]
