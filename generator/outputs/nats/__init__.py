"""What the mesh asks of NATS: connections with the keys that keep its streams, and the streams that the manifest means."""

from generator.outputs.nats.connection import AdminConnection, EventsError, Keepers, cluster_keepers
from generator.outputs.nats.reload import reload
from generator.outputs.nats.topology import Topology, ensure, topology

__all__ = ["AdminConnection", "EventsError", "Keepers", "Topology", "cluster_keepers", "ensure", "reload", "topology"]
