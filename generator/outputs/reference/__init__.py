"""The manifest's reference for people, out of the declarations that load it and the functions that compute its defaults."""

from generator.outputs.reference.document import reference
from generator.outputs.reference.samples import Sample, samples

__all__ = ["Sample", "reference", "samples"]
