"""Envoy resources: strictly decoded, checked against Envoy's own rules, versioned by content."""

from generator.resources.decode import decode
from generator.resources.errors import DescriptorsMissingError, Problem, ResourceError
from generator.resources.families import Family, family_of
from generator.resources.holes import OPEN, Hole, Scalar, UnliftableError, open_key
from generator.resources.references import check_references
from generator.resources.resource import Resource, ResourceSet, ResourceType, WorkloadResources, fill, make_resource
from generator.resources.shapes import Shape, shape_of
from generator.resources.twin import twin

__all__ = [
    "OPEN",
    "DescriptorsMissingError",
    "Family",
    "Hole",
    "Problem",
    "Resource",
    "ResourceError",
    "ResourceSet",
    "ResourceType",
    "Scalar",
    "Shape",
    "UnliftableError",
    "WorkloadResources",
    "check_references",
    "decode",
    "family_of",
    "fill",
    "make_resource",
    "open_key",
    "shape_of",
    "twin",
]
