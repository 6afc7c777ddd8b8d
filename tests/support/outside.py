"""The world outside the mesh: an authority of its own, servers with TLS, and a note of everything that reaches them."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

HOUR = dt.timedelta(hours=1)
Answer = Callable[[bytes, grpc.aio.ServicerContext[Any, Any]], Any]


@dataclass(frozen=True)
class Pair:
    """A certificate with its key, as PEM and as files."""

    certificate: Path
    private_key: Path

    @property
    def pems(self) -> tuple[bytes, bytes]:
        """Key and certificate, as gRPC wants them."""
        return self.private_key.read_bytes(), self.certificate.read_bytes()


class Notary:
    """A certificate authority that no mesh knows of."""

    def __init__(self, folder: Path, name: str = "notary") -> None:
        self.folder, self.key = folder, ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        basic = x509.BasicConstraints(ca=True, path_length=0)
        own = self._builder(self.name, self.key, dt.datetime.now(dt.UTC)).add_extension(basic, critical=True)
        self.file = folder / f"{name}.crt"
        self.file.write_bytes(own.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def issue(self, file: str, *names: str, age: dt.timedelta = dt.timedelta(minutes=1)) -> Pair:
        """A certificate for these names and addresses, made `age` ago and good for an hour from then."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, file)])
        builder = self._builder(subject, key, dt.datetime.now(dt.UTC) - age)
        builder = builder.add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
        pair = Pair(self.folder / f"{file}.crt", self.folder / f"{file}.key")
        pair.certificate.write_bytes(
            builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM) + self.file.read_bytes()
        )
        pair.private_key.touch(mode=0o600)
        form, secret = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        pair.private_key.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, secret))
        return pair

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, at: dt.datetime) -> x509.CertificateBuilder:
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key.public_key())
        return builder.serial_number(x509.random_serial_number()).not_valid_before(at).not_valid_after(at + HOUR)


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


@dataclass
class Rates(grpc.GenericRpcHandler):
    """A foreign gRPC server: raw bytes, behaviour by path, and what it has seen."""

    port: int = 0
    answers: dict[str, Answer] = field(default_factory=dict)
    seen: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    peers: list[str] = field(default_factory=list)
    server: grpc.aio.Server | None = None

    async def start(self, address: str, pair: Pair | None, clients: Path | None = None) -> None:
        """`clients`: the authority of the certificates that callers must show."""
        self.server = grpc.aio.server(handlers=(self,))
        if pair is None:
            self.port = self.server.add_insecure_port(address)
        else:
            roots = None if clients is None else clients.read_bytes()
            credentials = grpc.ssl_server_credentials([pair.pems], roots, clients is not None)
            self.port = self.server.add_secure_port(address, credentials)
        await self.server.start()

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.stop(None)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        path = str(details.method)

        async def unary(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            self.seen.append((path, dict(context.invocation_metadata() or ())))
            self.peers += [name.decode() for name in context.auth_context().get("x509_common_name", ())]
            answer = self.answers.get(path)
            return bytes(await answer(request, context)) if answer else request

        return grpc.unary_unary_rpc_method_handler(unary)


@dataclass
class Listener:
    """A TLS server that sends back what it gets and notes names, connections and bytes."""

    names: list[str | None] = field(default_factory=list)
    connections: int = 0
    received: bytes = b""
    port: int = 0
    server: asyncio.Server | None = None

    async def start(self, host: str, pair: Pair | None) -> None:
        context = None if pair is None else self._context(pair)
        self.server = await asyncio.start_server(self._echo, host, 0, ssl=context)
        self.port = self.server.sockets[0].getsockname()[1]

    def _context(self, pair: Pair) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.certificate, pair.private_key)
        context.set_alpn_protocols(["h2"])
        context.sni_callback = lambda _socket, name, _context: self.names.append(name)
        return context

    async def _echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while data := await reader.read(65_536):
                self.received += data
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # whoever hangs up without a word has said what there was to say
        finally:
            writer.close()

    async def stop(self) -> None:
        if self.server is not None:
            self.server.close()
            await self.server.wait_closed()
