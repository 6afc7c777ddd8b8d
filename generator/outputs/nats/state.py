"""Streams and consumers as plain values, for `nipmesh status` and `nipmesh events`."""

from __future__ import annotations

from typing import Any

from nats.js.api import ConsumerInfo, StreamInfo


def state_of(info: StreamInfo) -> dict[str, Any]:
    """How much a stream holds, and how much it has yet to copy from the mesh's."""
    return {
        "name": info.config.name,
        "messages": info.state.messages,
        "bytes": info.state.bytes,
        "first_sequence": info.state.first_seq,
        "last_sequence": info.state.last_seq,
        "lag": sum(source.lag or 0 for source in info.sources or ()),
    }


def consumer_of(info: ConsumerInfo) -> dict[str, Any]:
    """How far a consumer is in its stream."""
    return {
        "name": info.name,
        "pending": info.num_pending or 0,
        "unacknowledged": info.num_ack_pending or 0,
        "redelivered": info.num_redelivered or 0,
        "acknowledged_sequence": info.ack_floor.stream_seq if info.ack_floor else 0,
    }
