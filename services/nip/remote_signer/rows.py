"""Connections as rows and back: what JSON holds in them."""

from __future__ import annotations

import json
from typing import Any, Final

from services.nip.domain.remote_signer.connection import Connection, ConnectionState
from services.nip.domain.remote_signer.message import Client
from services.nip.domain.remote_signer.permission import Effect, Method, Permission

CONNECTION_COLUMNS: Final = (
    "connection_id, owner, key_id, user_pubkey, signer_key_id, signer_pubkey, state, client_pubkey, secret_sha256, display_name, client,"
    " permissions, relays, create_time_us, connect_time_us, expire_time_us"
)


def connection_of(row: tuple[Any, ...]) -> Connection:
    """Return the connection of a row with CONNECTION_COLUMNS."""
    return Connection(
        connection_id=row[0],
        owner=row[1],
        key_id=row[2],
        user_pubkey=row[3],
        signer_key_id=row[4],
        signer_pubkey=row[5],
        state=ConnectionState(row[6]),
        client_pubkey=row[7],
        secret_sha256=bytes(row[8]),
        display_name=row[9],
        client=Client(**json.loads(row[10])),
        permissions=tuple(_permission_of(members) for members in json.loads(row[11])),
        relays=tuple(json.loads(row[12])),
        create_time_us=row[13],
        connect_time_us=row[14],
        expire_time_us=row[15],
    )


def row_of(connection: Connection) -> tuple[Any, ...]:
    """Return the values of CONNECTION_COLUMNS."""
    client = connection.client
    shown = {
        "display_name": client.display_name,
        "url": client.url,
        "image_url": client.image_url,
        "requested_permissions": client.requested_permissions,
    }
    return (
        connection.connection_id,
        connection.owner,
        connection.key_id,
        connection.user_pubkey,
        connection.signer_key_id,
        connection.signer_pubkey,
        connection.state.value,
        connection.client_pubkey,
        connection.secret_sha256,
        connection.display_name,
        json.dumps(shown),
        json.dumps([_members_of(one) for one in connection.permissions]),
        json.dumps(connection.relays),
        connection.create_time_us,
        connection.connect_time_us,
        connection.expire_time_us,
    )


def _permission_of(members: dict[str, Any]) -> Permission:
    return Permission(
        method=Method(members["method"]),
        effect=Effect(members["effect"]),
        kind=members.get("kind"),
        expire_time_us=members.get("expire_time_us"),
        uses_left=members.get("uses_left"),
    )


def _members_of(permission: Permission) -> dict[str, Any]:
    members = {
        "method": permission.method.value,
        "effect": permission.effect.value,
        "kind": permission.kind,
        "expire_time_us": permission.expire_time_us,
        "uses_left": permission.uses_left,
    }
    return {name: value for name, value in members.items() if value is not None}
