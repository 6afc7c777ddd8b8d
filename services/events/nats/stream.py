"""The one stream of a mesh: made by whichever service comes first, left as it is when an operator made it otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig, StreamInfo
from nats.js.errors import APIError, NotFoundError

from services.chassis.logs import get_logger

AGE_S_MAX: Final = 7 * 24 * 3_600.0
"""How long the stream keeps events: as long as the outboxes do."""
STREAM_BYTES: Final = (2 * 1024**3, 512 * 1024**2, 128 * 1024**2)
"""Disk of one stream: some million events, or less on a server that has not so much. The oldest events go first."""
MESSAGE_BYTES_MAX: Final = 1024**2
"""Largest event with its headers: the server's own limit for a message (max_payload)."""
DUPLICATES_S: Final = 120.0
"""How long the server remembers ids; each takes memory. Inboxes remember for days."""
REPLICAS: Final = 3
"""Copies of the stream when the URL names three servers or more: one may be lost."""
STREAM_EXISTS, NO_ROOM, NO_PEERS = 10058, 10047, 10005
"""The server's codes: the name is in use with another configuration; the server keeps no such amount for the stream; too few servers of a
cluster could take it, for a reason that the text says."""

_log = get_logger("events")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """What counts of its configuration."""

    name: str
    atomic: bool = False
    message_bytes_max: int = MESSAGE_BYTES_MAX
    inbox: str = ""
    """The stream that consumers are made on, when it is another one."""

    @property
    def heard(self) -> str:
        """The stream that consumers are made on."""
        return self.inbox or self.name


def kept_stream(name: str, inbox: str, message_bytes_max: int) -> Stream:
    """A stream that whoever runs the mesh has made; this service may not ask for it, only publish to it and hear from its inbox."""
    return Stream(name=name, atomic=True, message_bytes_max=message_bytes_max, inbox=inbox)


async def ensure_stream(js: JetStreamContext, name: str, servers: int) -> Stream:
    """The stream, made when it is missing. Raises APIError."""
    try:
        return _stream_of(await js.stream_info(name))
    except NotFoundError:
        pass
    for bytes_max in STREAM_BYTES:
        try:
            info = await js.add_stream(_config(name, servers, bytes_max))
            _log.info("event stream made", stream=name, copies=info.config.num_replicas, bytes_max=bytes_max)
            return _stream_of(info)
        except APIError as error:
            if error.err_code == STREAM_EXISTS:  # another service was faster, with another size
                return _stream_of(await js.stream_info(name))
            if not _lacks_room(error) or bytes_max == STREAM_BYTES[-1]:
                raise
    raise AssertionError("the last one was raised")


def _lacks_room(error: APIError) -> bool:
    return error.err_code == NO_ROOM or (error.err_code == NO_PEERS and "storage" in (error.description or ""))


def _config(name: str, servers: int, bytes_max: int) -> StreamConfig:
    return StreamConfig(
        name=name,
        description="Events of the mesh's services; subjects are <mesh>.<service>.<CloudEvents type>.",
        subjects=[f"{name}.>"],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        discard=DiscardPolicy.OLD,
        max_age=AGE_S_MAX,
        max_bytes=bytes_max,
        max_msg_size=MESSAGE_BYTES_MAX,
        duplicate_window=DUPLICATES_S,
        num_replicas=REPLICAS if servers >= REPLICAS else 1,
        allow_atomic=True,
        allow_direct=True,
    )


def _stream_of(info: StreamInfo) -> Stream:
    config = info.config
    size = config.max_msg_size or -1
    if not config.allow_atomic:
        _log.warning("the event stream takes no atomic batches: publishing is slower", stream=config.name)
    if (config.max_age or 0) == 0 or (config.max_age or 0) > AGE_S_MAX:
        _log.warning("the event stream keeps events longer than inboxes reach: see docs/events.md", stream=config.name)
    return Stream(
        name=config.name or "",
        atomic=bool(config.allow_atomic),
        message_bytes_max=size if size > 0 else MESSAGE_BYTES_MAX,
    )
