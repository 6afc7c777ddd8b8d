"""A real RabbitMQ for tests: a node of its own with its own folder, ports and port mapper, not the system's; it can be stopped and killed.

Debian's package: `apt-get install --no-install-recommends rabbitmq-server`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from generator.outputs.local.processes import end_with_parent
from support.mesh import free_port
from support.nats_server import write_certificates

PROGRAM = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""The program itself: the one on PATH insists on root or the package's user, and on the system's folders."""
USER, PASSWORD = "invoice", "s3cret-of-invoice"
START_S_MAX = 90.0
NOBODY = 65_534


class RabbitServer:
    """A node that knows one user. Its folder keeps its queues from one start to the next."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self.ports = [free_port() for _ in range(4)]
        self.url = f"amqp://127.0.0.1:{self.ports[0]}"
        self.tls_url = f"amqps://127.0.0.1:{self.ports[1]}"
        self.authority, certificate, key = write_certificates(folder)
        (folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.ports[0]}\n"
            f"listeners.ssl.1 = 127.0.0.1:{self.ports[1]}\n"
            f"ssl_options.cacertfile = {self.authority}\nssl_options.certfile = {certificate}\n"
            f"ssl_options.keyfile = {key}\n"
            f"default_user = {USER}\ndefault_pass = {PASSWORD}\nlog.console = true\nlog.file = false\n"
        )
        (folder / "plugins").write_text("[].")
        self.credentials = folder / "credentials"
        self.credentials.write_text(f"{USER}:{PASSWORD}\n")
        self.credentials.chmod(0o600)
        self._own_everything(folder)

    def start(self) -> None:
        assert not self._processes
        environment = self._environment()
        self._spawn([str(shutil.which("epmd")), "-address", "127.0.0.1"], environment)
        self._spawn([str(PROGRAM)], environment)
        until_s = time.monotonic() + START_S_MAX
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.ports[1]), timeout=1):
                return
            assert self._processes[-1].poll() is None, self.log()
            assert time.monotonic() < until_s, self.log()
            time.sleep(0.05)

    def kill(self) -> None:
        """`kill -9` of the node, and of all that it started."""
        for process in reversed(self._processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._processes.clear()

    def log(self) -> str:
        return (self._folder / "log").read_text()

    def _environment(self) -> dict[str, str]:
        folder = self._folder
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(self.ports[2]),
            "RABBITMQ_DIST_PORT": str(self.ports[3]),
            "RABBITMQ_NODENAME": "nipmesh@localhost",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "generated"),
            "RABBITMQ_ALLOW_INPUT": "true",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none -noinput -kernel inet_dist_use_interface {127,0,0,1}"
            ),
        }

    def _spawn(self, command: list[str], environment: dict[str, str]) -> None:
        whose = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        with (self._folder / "log").open("ab") as log:
            process = subprocess.Popen(
                (*end_with_parent(), *command),
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self._folder,
                start_new_session=True,
                **whose,
            )
        self._processes.append(process)

    def _own_everything(self, folder: Path) -> None:
        """The node runs without rights; this process reads its own credential file whoever it is."""
        if os.geteuid() == 0:
            for each in (folder, *folder.iterdir()):
                os.chown(each, NOBODY, NOBODY)


def missing() -> str:
    """Why no server can be started here; empty when one can."""
    if not PROGRAM.exists() or shutil.which("epmd") is None:
        return "RabbitMQ is not installed: apt-get install --no-install-recommends rabbitmq-server"
    return ""


@contextlib.contextmanager
def running_rabbitmq() -> Iterator[RabbitServer]:
    """A new node, gone afterwards with its folder."""
    folder = Path(tempfile.mkdtemp(prefix="nipmesh-rabbitmq-"))
    server = RabbitServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)
