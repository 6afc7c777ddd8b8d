"""A real NATS server with JetStream for tests: on a port of its own, every acknowledgement on disk; it can be stopped and killed."""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from generator.outputs.local.processes import end_with_parent
from support.mesh import free_port

PROGRAM = Path(sys.executable).with_name("nats-server")
START_S_MAX = 20.0


class NatsServer:
    """A server whose folder keeps its streams from one start to the next. `extra` are further lines of its configuration."""

    def __init__(self, folder: Path, extra: str = "", scheme: str = "nats", disk: str = "1TB") -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self._configuration = folder / "nats.conf"
        self._configuration.write_text(
            f"listen: 127.0.0.1:{self.port}\n"
            f'jetstream {{ store_dir: "{folder}/js", sync_interval: always, max_memory_store: 64MB, max_file_store: {disk} }}\n{extra}\n'
        )

    def start(self) -> None:
        assert self._process is None
        with (self._folder / "nats.log").open("ab") as log:
            self._process = subprocess.Popen(
                (*end_with_parent(), str(PROGRAM), "-c", str(self._configuration)), stdout=log, stderr=log
            )
        until_s = time.monotonic() + START_S_MAX
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < until_s, self.log()
            time.sleep(0.01)

    def kill(self) -> None:
        """`kill -9`."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def lose_everything(self) -> None:
        """Its disk is gone; to be started again."""
        shutil.rmtree(self._folder / "js", ignore_errors=True)

    def save(self) -> Path:
        """A copy of its disk, made while it is stopped."""
        copy = self._folder / "saved"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self._folder / "js", copy)
        return copy

    def restore(self, copy: Path) -> None:
        """What was saved, instead of what it has now; while it is stopped."""
        self.lose_everything()
        shutil.copytree(copy, self._folder / "js")

    def log(self) -> str:
        return (self._folder / "nats.log").read_text()

    def _end(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def running_nats(extra: str = "", scheme: str = "nats") -> Iterator[NatsServer]:
    """A new server, gone afterwards with its folder."""
    folder = Path(tempfile.mkdtemp(prefix="nipmesh-nats-"))
    server = NatsServer(folder, extra, scheme)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


def write_certificates(folder: Path) -> tuple[Path, Path, Path]:
    """(authority, certificate, key) of a server at 127.0.0.1, as PEM files."""
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
    now = dt.datetime.now(dt.UTC)

    def built(name: x509.Name, public: ec.EllipticCurvePublicKey, *, is_authority: bool) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(authority_name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        )
        if not is_authority:
            address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
        return builder.sign(authority_key, hashes.SHA256())

    server_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nats")])
    files = folder / "ca.pem", folder / "server.pem", folder / "server.key"
    files[0].write_bytes(
        built(authority_name, authority_key.public_key(), is_authority=True).public_bytes(Encoding.PEM)
    )
    files[1].write_bytes(built(server_name, key.public_key(), is_authority=False).public_bytes(Encoding.PEM))
    files[2].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    files[2].chmod(0o600)
    return files
