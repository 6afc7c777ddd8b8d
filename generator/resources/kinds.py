"""The kinds of resources that Envoy is told."""

from __future__ import annotations

import enum

from generator.resources.descriptors import TYPE_PREFIX


class ResourceType(enum.Enum):
    """The kinds of resources, by the full names of their messages."""

    BOOTSTRAP = "envoy.config.bootstrap.v3.Bootstrap"
    LISTENER = "envoy.config.listener.v3.Listener"
    CLUSTER = "envoy.config.cluster.v3.Cluster"
    ROUTE = "envoy.config.route.v3.RouteConfiguration"
    ENDPOINTS = "envoy.config.endpoint.v3.ClusterLoadAssignment"
    SECRET = "envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105  # the name of a message

    @property
    def url(self) -> str:
        """The `@type` of such a resource."""
        return TYPE_PREFIX + self.value

    @property
    def short(self) -> str:
        """For example `Cluster`."""
        return str(self.value).rpartition(".")[2]
