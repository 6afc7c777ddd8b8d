"""Between the messages of nipmesh.nip.v1 and the domain of the remote signer; nothing is decided here."""

from __future__ import annotations

from typing import Final

from nipmesh.nip.v1 import remote_signer_pb2 as pb
from services.nip.domain.remote_signer.connection import Connection
from services.nip.domain.remote_signer.log import Recorded
from services.nip.domain.remote_signer.permission import Effect, Method, Permission
from services.nip.wire import timestamp_of_us

_METHODS: Final = {
    pb.REMOTE_SIGNER_METHOD_SIGN_EVENT: Method.SIGN_EVENT,
    pb.REMOTE_SIGNER_METHOD_NIP04_ENCRYPT: Method.NIP04_ENCRYPT,
    pb.REMOTE_SIGNER_METHOD_NIP04_DECRYPT: Method.NIP04_DECRYPT,
    pb.REMOTE_SIGNER_METHOD_NIP44_ENCRYPT: Method.NIP44_ENCRYPT,
    pb.REMOTE_SIGNER_METHOD_NIP44_DECRYPT: Method.NIP44_DECRYPT,
}
_METHOD_NUMBERS: Final = {method: number for number, method in _METHODS.items()}
_EFFECTS: Final = {
    pb.RemoteSignerPermission.EFFECT_ALLOW: Effect.ALLOW,
    pb.RemoteSignerPermission.EFFECT_DENY: Effect.DENY,
    pb.RemoteSignerPermission.EFFECT_ASK: Effect.ASK,
}
_EFFECT_NUMBERS: Final = {effect: number for number, effect in _EFFECTS.items()}


def permission_of(message: pb.RemoteSignerPermission) -> Permission:
    """Return the permission of a message that its rules allow."""
    return Permission(
        method=_METHODS[message.method],
        effect=_EFFECTS[message.effect],
        kind=message.kind if message.HasField("kind") else None,
        expire_time_us=message.expire_time.ToMicroseconds() if message.HasField("expire_time") else None,
        uses_left=message.uses_left if message.HasField("uses_left") else None,
    )


def permission_message(permission: Permission) -> pb.RemoteSignerPermission:
    """Return the message of a permission."""
    message = pb.RemoteSignerPermission(
        method=_METHOD_NUMBERS[permission.method],
        effect=_EFFECT_NUMBERS[permission.effect],
        kind=permission.kind,
        uses_left=permission.uses_left,
    )
    if permission.expire_time_us is not None:
        message.expire_time.CopyFrom(timestamp_of_us(permission.expire_time_us))
    return message


def connection_message(connection: Connection) -> pb.RemoteSignerConnection:
    """Return the message of a connection; nothing secret is in it."""
    message = pb.RemoteSignerConnection(
        connection_id=connection.connection_id,
        key_id=connection.key_id,
        user_pubkey=connection.user_pubkey,
        signer_pubkey=connection.signer_pubkey,
        state=pb.RemoteSignerConnection.State.Value(f"STATE_{connection.state.value}"),
        display_name=connection.display_name,
        client=pb.RemoteSignerClient(
            pubkey=connection.client_pubkey,
            display_name=connection.client.display_name,
            url=connection.client.url,
            image_url=connection.client.image_url,
            requested_permissions=connection.client.requested_permissions,
        ),
        permissions=[permission_message(one) for one in connection.permissions],
        relay_urls=connection.relays,
        create_time=timestamp_of_us(connection.create_time_us),
    )
    if connection.connect_time_us is not None:
        message.connect_time.CopyFrom(timestamp_of_us(connection.connect_time_us))
    if connection.expire_time_us is not None:
        message.expire_time.CopyFrom(timestamp_of_us(connection.expire_time_us))
    return message


def request_message(recorded: Recorded) -> pb.RemoteSignerRequest:
    """Return the message of a recorded request: neither what was asked with nor the answer."""
    return pb.RemoteSignerRequest(
        approval_id=recorded.approval_id,
        connection_id=recorded.connection_id,
        client_pubkey=recorded.client_pubkey,
        method=recorded.method,
        kind=recorded.kind,
        outcome=pb.RemoteSignerRequest.Outcome.Value(f"OUTCOME_{recorded.outcome.value}"),
        create_time=timestamp_of_us(recorded.create_time_us),
        update_time=timestamp_of_us(recorded.update_time_us),
    )
