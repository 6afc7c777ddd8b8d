"""Ids: UUIDv7, which rise with time, so that primary keys stay close together and lists by id are lists by age."""

from __future__ import annotations

import uuid_utils


def new_id() -> str:
    """A fresh UUIDv7, 36 lower-case characters."""
    return str(uuid_utils.uuid7())
