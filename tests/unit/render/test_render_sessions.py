"""Which calls belong to a session that began at certain replicas."""

from __future__ import annotations

import base64
import itertools
import re

import pytest

from generator.model import Session, SocketAddress
from generator.render.sessions import session_pattern

HEADER = Session(header="x-session", cookie=None, ttl_ms=0)
COOKIE = Session(header=None, cookie="my.session", ttl_ms=60_000)
HOSTS = ("127.0.0.1", "10.1.2.34", "10.20.30.40")
PORTS = (80, 808, 8080, 8081, 18080, 18081, 18082, 18088, 60000)
ADDRESSES = tuple(itertools.product(HOSTS, PORTS))


def header_value(address: str) -> str:
    return base64.b64encode(address.encode()).decode()


def cookie_value(address: str, expires: int) -> str:
    """`envoy.Cookie{address, expires}`, as Envoy writes it."""
    varint = bytearray()
    while expires > 0x7F:
        varint.append(expires & 0x7F | 0x80)
        expires >>= 7
    return base64.b64encode(b"\x0a" + bytes([len(address)]) + address.encode() + b"\x10" + varint + b"\x01").decode()


@pytest.mark.parametrize("own", ADDRESSES)
def test_a_session_belongs_to_its_replica_and_to_no_neighbour(own: tuple[str, int]) -> None:
    replica = SocketAddress(host=own[0], port=own[1])
    header, cookie = session_pattern(HEADER, [replica]), session_pattern(COOKIE, [replica])
    assert (header.name, cookie.name) == ("x-session", "cookie")
    for host, port in ADDRESSES:
        address, is_own = f"{host}:{port}", (host, port) == own
        assert bool(re.fullmatch(header.pattern, header_value(address))) is is_own, address
        for expires in (1, 0x6926_0000, 0x6926_FFFF, 2**40):
            sent = f'a=b; my.session="{cookie_value(address, expires)}"; c=d'
            assert bool(re.fullmatch(cookie.pattern, sent)) is is_own, address


@pytest.mark.parametrize("cookie", ["my.session={}", 'my.session="{}"', "a=b;my.session={}", "a=b; my.session={}; c=d"])
def test_cookies_are_found_however_clients_write_them(cookie: str) -> None:
    pattern = session_pattern(COOKIE, [SocketAddress(host="127.0.0.1", port=8080)]).pattern
    value = cookie_value("127.0.0.1:8080", 1_764_000_000)
    assert re.fullmatch(pattern, cookie.format(value))
    assert not re.fullmatch(pattern, cookie.format(value).replace("my.session", "mysession"))
    assert not re.fullmatch(pattern, cookie.format(value).replace("my.session", "not-my.session"))


def test_any_of_several_replicas_will_do() -> None:
    replicas = [SocketAddress(host="127.0.0.1", port=1), SocketAddress(host="::1", port=2)]
    pattern = session_pattern(HEADER, replicas).pattern
    for address in ("127.0.0.1:1", "[::1]:2"):
        assert re.fullmatch(pattern, header_value(address))
    assert not re.fullmatch(pattern, header_value("127.0.0.1:2"))
