"""Mesh and placement to Envoy resources, through the templates in `envoy/templates`. Pure: same input, same bytes."""

from generator.render.names import DEPENDENCY_FAILED_HEADER, cluster_name, workload_file
from generator.render.render import PlacementError, render

__all__ = ["DEPENDENCY_FAILED_HEADER", "PlacementError", "cluster_name", "render", "workload_file"]
