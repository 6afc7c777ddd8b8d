"""A real Kafka for tests: one node without ZooKeeper (KRaft), its jars fetched once from Maven Central into a cache that later runs find.

`PYTHONPATH=tests python -m support.kafka_server` fetches them and prints where they are.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from generator.outputs.local.processes import end_with_parent
from support.mesh import free_port
from support.nats_server import write_certificates

VERSION = "3.9.1"
POM = Path(__file__).parents[1] / "peers" / "kafka" / "pom.xml"
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
FETCH_S_MAX = 240
START_S_MAX = 60.0
USER, PASSWORD = "invoice", "s3cret-of-invoice"
LOGIN = "org.apache.kafka.common.security"
CLUSTER_ID = "bmlwbWVzaC10ZXN0cy0xMg"
JAVA_OPTIONS = ("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")
"""Small, and quick to start."""


def jars_folder() -> Path:
    """One folder per version, below XDG_CACHE_HOME."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "nipmesh-test" / f"kafka-{VERSION}" / "jars"


def missing() -> str:
    """Why no server can be started here; empty when one can."""
    if shutil.which("java") is None:
        return "Java is not installed: Kafka runs on it"
    if not jars_folder().exists():
        return "Kafka's jars are not here: PYTHONPATH=tests python -m support.kafka_server fetches them"
    return ""


def fetch() -> Path:
    """The jars' folder, filled now if need be. Raises RuntimeError with Maven's own words."""
    target = jars_folder()
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            unfinished = target.with_name("unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            command = [
                "mvn",
                "-q",
                "-B",
                "-f",
                str(POM),
                COPY,
                "-DincludeScope=runtime",
                f"-DoutputDirectory={unfinished}",
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=FETCH_S_MAX)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
            unfinished.replace(target)
    return target


class KafkaServer:
    """A node that knows one user. Its folder keeps its topics from one start to the next."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.ports = [free_port() for _ in range(3)]
        self.url = f"kafka://127.0.0.1:{self.ports[0]}"
        self.tls_url = f"kafka+tls://127.0.0.1:{self.ports[1]}"
        self.authority, certificate, key = write_certificates(folder)
        (folder / "server.pem.all").write_bytes(key.read_bytes() + certificate.read_bytes())
        self._configuration = folder / "server.properties"
        self._configuration.write_text(self._properties())
        (folder / "log4j.properties").write_text(
            "log4j.rootLogger=WARN, stdout\nlog4j.appender.stdout=org.apache.log4j.ConsoleAppender\n"
            "log4j.appender.stdout.layout=org.apache.log4j.SimpleLayout\n"
        )
        self.credentials = folder / "credentials"
        self.credentials.write_text(f"{USER}:{PASSWORD}\n")
        self.credentials.chmod(0o600)
        self._format()

    def start(self) -> None:
        assert self._process is None
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                (*end_with_parent(), *self._java("kafka.Kafka"), str(self._configuration)), stdout=log, stderr=log
            )
        until_s = time.monotonic() + START_S_MAX
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.ports[1]), timeout=1):
                return
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < until_s, self.log()
            time.sleep(0.05)

    def kill(self) -> None:
        """`kill -9`."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def log(self) -> str:
        return (self._folder / "log").read_text()

    def _format(self) -> None:
        """The node's folder, with the user's password in the cluster's own log."""
        user = f"SCRAM-SHA-512=[name={USER},iterations=4096,password={PASSWORD}]"
        tool = self._java("kafka.tools.StorageTool")
        command = [*tool, "format", "-t", CLUSTER_ID, "-c", str(self._configuration), "--add-scram", user]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=START_S_MAX)
        assert done.returncode == 0, done.stdout + done.stderr

    def _java(self, program: str) -> list[str]:
        return ["java", *JAVA_OPTIONS, "-cp", f"{jars_folder()}/*", program]

    def _properties(self) -> str:
        plain, tls, controller = self.ports
        return "\n".join(
            (
                "process.roles=broker,controller",
                "node.id=1",
                f"controller.quorum.voters=1@127.0.0.1:{controller}",
                f"listeners=PLAINTEXT://127.0.0.1:{plain},SASL_SSL://127.0.0.1:{tls},CONTROLLER://127.0.0.1:{controller}",
                f"advertised.listeners=PLAINTEXT://127.0.0.1:{plain},SASL_SSL://127.0.0.1:{tls}",
                "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT",
                "controller.listener.names=CONTROLLER",
                "inter.broker.listener.name=PLAINTEXT",
                "sasl.enabled.mechanisms=SCRAM-SHA-512,PLAIN",
                f"listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={LOGIN}.scram.ScramLoginModule required;",
                f'listener.name.sasl_ssl.plain.sasl.jaas.config={LOGIN}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";',
                "ssl.keystore.type=PEM",
                f"ssl.keystore.location={self._folder}/server.pem.all",
                f"log.dirs={self._folder}/data",
                "auto.create.topics.enable=false",
                "offsets.topic.num.partitions=1",
                "offsets.topic.replication.factor=1",
                "transaction.state.log.num.partitions=1",
                "transaction.state.log.replication.factor=1",
                "transaction.state.log.min.isr=1",
                "group.initial.rebalance.delay.ms=0",
                "group.min.session.timeout.ms=100",
                "broker.session.timeout.ms=1000",
                "broker.heartbeat.interval.ms=200",
                "num.network.threads=2",
                "num.io.threads=2",
                "background.threads=1",
                "log.cleaner.dedupe.buffer.size=4194304",
                "",
            )
        )


@contextlib.contextmanager
def running_kafka() -> Iterator[KafkaServer]:
    """A new node, gone afterwards with its folder."""
    folder = Path(tempfile.mkdtemp(prefix="nipmesh-kafka-"))
    try:
        server = KafkaServer(folder)
        try:
            server.start()
            yield server
        finally:
            server.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{fetch()}\n")
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        sys.exit(f"no Kafka: {error}")
