"""Cross checks of a manifest against itself, its protobufs and its files."""

from generator.analysis.check import Analysis, analyse, check_manifest
from generator.model.overrides import Overrides

__all__ = ["Analysis", "Overrides", "analyse", "check_manifest"]
