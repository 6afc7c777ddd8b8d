"""How the replicas of a consumer share the partitions: evenly, but all to one that rewinds the group, for as long as that takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from aiokafka.cluster import ClusterMetadata
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata

REWINDING: Final = b"rewinding"


class Sharing(RangePartitionAssignor):  # type: ignore[misc]  # the client carries no types
    """Evenly, unless somebody rewinds: then nobody else reads, and the new positions are what all begin with afterwards."""

    name = "nipmesh"

    @classmethod
    def assign(
        cls, cluster: ClusterMetadata, members: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        """The group's leader shares out."""
        rewinding = sorted(name for name, member in members.items() if member.user_data == REWINDING)
        if not rewinding:
            shared: dict[str, ConsumerProtocolMemberAssignment] = super().assign(cluster, members)
            return shared
        topics = {topic for member in members.values() for topic in member.subscription}
        everything = [(topic, sorted(cluster.partitions_for_topic(topic) or ())) for topic in sorted(topics)]
        return {
            name: ConsumerProtocolMemberAssignment(0, everything if name == rewinding[0] else [], b"")
            for name in members
        }


class Rewinding(Sharing):
    """Of the member that rewinds."""

    @classmethod
    def metadata(cls, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        """Says so to the leader."""
        return ConsumerProtocolMemberMetadata(cls.version, list(topics), REWINDING)
