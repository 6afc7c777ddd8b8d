"""Pages of lists: opaque keyset tokens, sealed for one caller, method and set of filters.

page = tokens.page(request)                               # request has page_size and page_token
rows = ... WHERE id < page.after[0] ... LIMIT page.size + 1
response.next_page_token = tokens.next(request, (rows[-1].id,)) if more else ""
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import Final, Self

from google.protobuf.message import Message

from services.chassis.caller import current_call
from services.chassis.errors import FieldViolation, InvalidRequest, Reason, ServiceError
from services.chassis.secret import SecretBytes
from services.storage.database import Database
from services.storage.sql import value_of

PAGE_SIZE_DEFAULT: Final = 50
"""Rows of a page when the request names no size."""
PAGE_SIZE_MAX: Final = 1_000
"""A larger size is lowered to this (AIP-158)."""
TOKEN_CHARACTERS_MAX: Final = 1_024
"""A longer page token is none of ours."""
NO_FILTERS: Final = frozenset({"page_size", "page_token", "min_sequence"})
"""Fields that may differ from page to page."""
SEAL_BYTES: Final = 16
"""Length of the seal (HMAC-SHA-256, cut): nobody guesses 128 bits."""

Cursor = tuple[str | int, ...]
"""The sort key of the last row of a page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What to read: at most `size` rows after the row with sort key `after` (None: from the start)."""

    size: int
    after: Cursor | None


class PageTokens:
    """Makes and reads page tokens with a key that lives in the database, so that all replicas know it."""

    def __init__(self, key: SecretBytes) -> None:
        """`key`: 32 random bytes."""
        self._key = key

    @classmethod
    async def open(cls, database: Database) -> Self:
        """With the key of this database."""
        query = "SELECT value FROM storage_fact WHERE name = 'page_token_key'"
        return cls(SecretBytes(await database.read(lambda connection: value_of(connection.execute(query)))))

    def page(self, request: Message, *, scope: str | None = None, method: str | None = None) -> Page:
        """What a request with `page_size` and `page_token` asks for. Raises PAGE_TOKEN_INVALID.

        A token is good only for the caller, the method and the other fields it was made for; scope and method default to those of
        the running call.
        """
        size = int(getattr(request, "page_size"))  # noqa: B009  # Message has no such attribute for the type checker
        token = str(getattr(request, "page_token"))  # noqa: B009  # the same
        if size < 0:
            raise InvalidRequest(FieldViolation(field="page_size", description="must not be negative"))
        after = self._open(token, _binding(request, scope, method)) if token else None
        return Page(size=min(size, PAGE_SIZE_MAX) or PAGE_SIZE_DEFAULT, after=after)

    def next(self, request: Message, after: Cursor, *, scope: str | None = None, method: str | None = None) -> str:
        """The token of the page that follows the row with sort key `after`."""
        body = json.dumps(after, separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(self._seal(body, _binding(request, scope, method)) + body).decode().rstrip("=")

    def _open(self, token: str, binding: bytes) -> Cursor:
        """The cursor in a token of ours, for this binding."""
        try:
            raw = base64.b64decode(
                token[:TOKEN_CHARACTERS_MAX] + "=" * (-len(token) % 4), altchars=b"-_", validate=True
            )
        except (binascii.Error, ValueError):
            raw = b""
        seal, body = raw[:SEAL_BYTES], raw[SEAL_BYTES:]
        if not hmac.compare_digest(seal, self._seal(body, binding)):
            raise ServiceError(Reason.PAGE_TOKEN_INVALID, "the page token was not made for this caller and this query")
        return tuple(json.loads(body))

    def _seal(self, body: bytes, binding: bytes) -> bytes:
        """HMAC over the cursor and what it is bound to."""
        return hmac.digest(self._key.reveal(), binding + body, "sha256")[:SEAL_BYTES]


def _binding(request: Message, scope: str | None, method: str | None) -> bytes:
    """Hash of caller, method and the request's filters."""
    call = current_call()
    filters = type(request)()
    filters.CopyFrom(request)
    for name in NO_FILTERS & set(filters.DESCRIPTOR.fields_by_name):
        filters.ClearField(name)
    who = json.dumps([call.caller.scope if scope is None else scope, call.method if method is None else method])
    return hashlib.sha256(who.encode() + b"\0" + filters.SerializeToString(deterministic=True)).digest()
