"""NIP-46 messages: requests of apps, read with suspicion; answers, written so that clients in use understand them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from services.nip.domain.remote_signer.permission import Method
from services.nostr.event import KIND_MAX, MalformedEventError, Template, check_content

MESSAGE_CHARACTERS_MAX: Final = 262_144
"""A request: an event of 64 KiB as JSON inside JSON, escaped twice, still fits."""
ID_CHARACTERS_MAX: Final = 256
METHOD_CHARACTERS_MAX: Final = 64
PARAMS_MAX: Final = 8
AUTH_URL: Final = "auth_url"
"""The result that tells an app to show the user a URL."""
NULL: Final = "null"
"""What switch_relays answers: nothing is to be changed. The string, because clients parse results as JSON."""
_PUBKEY_DIGITS: Final = 64


class MalformedRequestError(ValueError):
    """The decrypted text is no request: without an id there is nothing to answer."""


class ParameterError(ValueError):
    """A parameter is missing or wrong; the text is for the app."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request of an app. `method` may be any word."""

    id: str
    method: str
    params: tuple[str, ...]

    @property
    def key_method(self) -> Method | None:
        """The method, when it is one that uses the user's key."""
        return Method(self.method) if self.method in Method.__members__.values() else None

    def param(self, at: int) -> str:
        """A parameter by position; empty where there is none."""
        return self.params[at] if at < len(self.params) else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the app gets: a result that is not empty, or an error."""

    result: str = ""
    error: str = ""

    def __post_init__(self) -> None:
        """One app waits for ever for an empty result (nostr-tools), another takes an error that is no text for success."""
        assert self.result or self.error, "an app would wait for ever"


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """What an app says of itself: unauthenticated, cut, for display only."""

    display_name: str = ""
    url: str = ""
    image_url: str = ""
    requested_permissions: str = ""


def request_of(text: str) -> Request:
    """Read a decrypted request. Raises MalformedRequestError."""
    if len(text) > MESSAGE_CHARACTERS_MAX:
        raise MalformedRequestError("the request is too long")
    try:
        members = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedRequestError("not JSON") from error
    if not isinstance(members, dict):
        raise MalformedRequestError("not a JSON object")
    request_id, method, params = members.get("id"), members.get("method"), members.get("params", [])
    if not _is_text(request_id, ID_CHARACTERS_MAX) or not _is_text(method, METHOD_CHARACTERS_MAX):
        raise MalformedRequestError("no id or no method")
    if not isinstance(params, list) or len(params) > PARAMS_MAX:
        raise MalformedRequestError("the parameters are no list")
    # Some clients leave an optional parameter out by sending null.
    texts = tuple("" if value is None else value for value in params)
    if not all(isinstance(value, str) and _is_unicode(value) for value in texts):
        raise MalformedRequestError("a parameter is no text")
    return Request(id=str(request_id), method=str(method), params=texts)


def text_of_request(request: Request) -> str:
    """Write a request, for the form in which it is kept."""
    return json.dumps({"id": request.id, "method": request.method, "params": list(request.params)}, ensure_ascii=False)


def text_of_answer(request_id: str, answer: Answer) -> str:
    """Write an answer: only what it has, each a string."""
    members = {"id": request_id, "result": answer.result, "error": answer.error}
    return json.dumps({name: value for name, value in members.items() if value}, ensure_ascii=False)


def answer_of_text(text: str) -> Answer:
    """Read an answer that text_of_answer wrote."""
    members = json.loads(text)
    return Answer(result=members.get("result", ""), error=members.get("error", ""))


def template_of(request: Request, *, created_at: int) -> Template:
    """Return the event to sign; one without a time gets `created_at` (seconds), that of the request. Raises ParameterError."""
    try:
        members = json.loads(request.param(0))
    except (ValueError, RecursionError) as error:
        raise ParameterError("the event is not JSON") from error
    if not isinstance(members, dict):
        raise ParameterError("the event is not a JSON object")
    kind, tags, content = members.get("kind"), members.get("tags", []), members.get("content", "")
    moment = members.get("created_at", created_at)
    if type(kind) is not int or not 0 <= kind <= KIND_MAX:
        raise ParameterError(f"the event's kind is not a number between 0 and {KIND_MAX}")
    if type(moment) is not int or not isinstance(content, str) or not _are_tags(tags):
        raise ParameterError("the event's created_at, content or tags have a wrong type")
    template = Template(kind=kind, tags=tuple(tuple(tag) for tag in tags), content=content, created_at=moment)
    try:
        check_content(created_at=moment, kind=kind, tags=template.tags)
    except MalformedEventError as error:
        raise ParameterError(str(error)) from error
    return template


def kind_of(request: Request) -> int | None:
    """The kind of the event to sign; None for another method, and where there is none to be read."""
    if request.key_method is not Method.SIGN_EVENT:
        return None
    try:
        return template_of(request, created_at=0).kind
    except ParameterError:
        return None


def peer_of(request: Request) -> str:
    """The other side of an encryption. Raises ParameterError."""
    peer = request.param(0).lower()
    if len(peer) != _PUBKEY_DIGITS or not all(digit in "0123456789abcdef" for digit in peer):
        raise ParameterError("the first parameter is not a public key in hex")
    return peer


def client_of(request: Request) -> Client:
    """What a `connect` says of the app; nonsense is left out."""
    try:
        members = json.loads(request.param(3) or "{}")
    except (ValueError, RecursionError):
        members = {}
    found: dict[str, Any] = members if isinstance(members, dict) else {}
    return Client(
        display_name=shown(found.get("name")),
        url=shown(found.get("url")),
        image_url=shown(found.get("image")),
        requested_permissions=shown(request.param(2)),
    )


SHOWN_CHARACTERS_MAX: Final = 500
"""Of what an app says of itself so much is kept."""


def shown(value: object) -> str:
    """A stranger's text for display: cut, without control characters and without what is no Unicode."""
    if not isinstance(value, str):
        return ""
    return "".join(one for one in value[:SHOWN_CHARACTERS_MAX] if one.isprintable())


def _is_text(value: object, characters_max: int) -> bool:
    return isinstance(value, str) and 0 < len(value) <= characters_max and "\0" not in value and _is_unicode(value)


def _is_unicode(value: str) -> bool:
    """Whether it can be written as UTF-8: JSON can name half a character."""
    return not any("\ud800" <= one <= "\udfff" for one in value)


def _are_tags(tags: object) -> bool:
    return isinstance(tags, list) and all(
        isinstance(tag, list) and all(isinstance(value, str) for value in tag) for tag in tags
    )
