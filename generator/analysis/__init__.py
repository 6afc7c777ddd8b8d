"""Cross checks of a manifest against itself, its protobufs and its files."""

from generator.analysis.check import Analysis, analyse, check_manifest
from generator.analysis.outputs import Output
from generator.model.overrides import Overrides

__all__ = ["Analysis", "Output", "Overrides", "analyse", "check_manifest"]
