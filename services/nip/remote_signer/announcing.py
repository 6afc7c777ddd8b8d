"""The events of the remote signer, appended in the transaction of their effect."""

from __future__ import annotations

from typing import Final

from nipmesh.events.v1 import remote_signer_events_pb2 as pb
from services.nip.domain.remote_signer.connection import Connection
from services.nip.domain.remote_signer.log import Recorded
from services.nip.remote_signer.wire import connection_message, request_message
from services.storage import sql
from services.storage.events import append_event

PREFIX: Final = "nipmesh.nip.v1.nip46."
CONNECTED: Final = PREFIX + "connected"
REVOKED: Final = PREFIX + "revoked"
REQUEST: Final = PREFIX + "request"
ASKED: Final = PREFIX + "permission_asked"
RESOLVED: Final = PREFIX + "permission_resolved"
RESPONSE: Final = PREFIX + "response"
REQUEST_KINDS: Final = frozenset({REQUEST, ASKED, RESOLVED, RESPONSE})
"""Events with a RemoteSignerRequestChanged."""


def announce_connection(rows: sql.Connection, kind: str, connection: Connection) -> None:
    """Tell that a connection changed."""
    message = connection_message(connection)
    message.ClearField("permissions")
    event = pb.RemoteSignerConnectionChanged(connection=message, owner_pubkey=connection.owner)
    _append(rows, kind, connection.connection_id, event.SerializeToString(deterministic=True))


def announce_request(rows: sql.Connection, kind: str, recorded: Recorded) -> None:
    """Tell that a request came, or what came of it."""
    event = pb.RemoteSignerRequestChanged(request=request_message(recorded), owner_pubkey=recorded.owner)
    _append(rows, kind, recorded.connection_id, event.SerializeToString(deterministic=True))


def _append(rows: sql.Connection, kind: str, subject: str, payload: bytes) -> None:
    append_event(rows, kind=kind, subject=subject, payload=payload)
