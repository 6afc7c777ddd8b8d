"""Envoy resources: strictly decoded, checked against Envoy's own rules, versioned by content."""

from generator.resources.decode import decode
from generator.resources.errors import DescriptorsMissingError, Problem, ResourceError
from generator.resources.references import check_references
from generator.resources.resource import Resource, ResourceSet, ResourceType, WorkloadResources, make_resource
from generator.resources.twin import twin

__all__ = [
    "DescriptorsMissingError",
    "Problem",
    "Resource",
    "ResourceError",
    "ResourceSet",
    "ResourceType",
    "WorkloadResources",
    "check_references",
    "decode",
    "make_resource",
    "twin",
]
