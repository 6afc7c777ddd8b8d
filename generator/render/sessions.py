"""How a call of a session is known: by the replica's address that Envoy wrote into its header or cookie.

Envoy looks for a session's replica within one cluster, and every version is a cluster of its own. So a split must send the
calls of a session to the version where it began; the address says which one that is.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable

from generator.model import Session, SocketAddress
from generator.render.views import PatternMatch


def session_pattern(session: Session, replicas: Iterable[SocketAddress]) -> PatternMatch:
    """Match the calls of sessions that began at one of these replicas; RE2's syntax, of the whole header."""
    addresses = sorted(_text(replica) for replica in replicas)
    if session.header is not None:
        values = [re.escape(base64.b64encode(address.encode()).decode()) for address in addresses]
        return PatternMatch(name=session.header, pattern="|".join(values))
    assert session.cookie is not None, "a session has a header or a cookie"
    beginnings = "|".join(_cookie_beginning(address) for address in addresses)
    return PatternMatch(name="cookie", pattern=f'(.*;\\s*)?{re.escape(session.cookie)}="?({beginnings}).*')


def _text(address: SocketAddress) -> str:
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{host}:{address.port}"


def _cookie_beginning(address: str) -> str:
    """What the base64 of envoy.Cookie begins with: `string address = 1`, and the tag of `uint64 expires = 2`.

    See extensions/http/stateful_session/cookie in Envoy. The last character also holds bits of what follows.
    """
    known = b"\x0a" + bytes([len(address)]) + address.encode() + b"\x10"
    length = -(-len(known) * 8 // 6)
    texts = [base64.b64encode(known + bytes([following, 0])).decode()[:length] for following in range(256)]
    endings = "".join(sorted({text[-1] for text in texts}))
    return f"{re.escape(texts[0][:-1])}[{endings}]"
