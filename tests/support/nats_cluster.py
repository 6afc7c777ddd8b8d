"""Three real NATS servers that are one cluster: a stream has a copy on each, and any of them may be killed."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import nats
import nats.errors
from nats.js import JetStreamContext
from nats.js.api import StreamInfo
from nats.js.errors import APIError

from support.events import until
from support.mesh import free_port
from support.nats_server import NatsServer

SERVERS = 3
ELECTION_S_MAX = 60.0
"""A leader is missed after some seconds; a server that comes back has its part of the stream to catch up with."""


class NatsCluster:
    """See the module. `url` names all its servers, as NIPMESH_EVENTS_URL does; `disk` is what each has for streams."""

    def __init__(self, folder: Path, disk: str = "1TB") -> None:
        routes = [free_port() for _ in range(SERVERS)]
        together = ", ".join(f"nats://127.0.0.1:{port}" for port in routes)
        self.servers: dict[str, NatsServer] = {}
        for number, port in enumerate(routes):
            name = f"server-{number}"
            (folder / name).mkdir()
            extra = (
                f"server_name: {name}\ncluster {{ name: nipmesh, listen: 127.0.0.1:{port}, routes: [{together}] }}\n"
            )
            self.servers[name] = NatsServer(folder / name, extra, disk=disk)
        self.url = "nats://" + ",".join(server.url.removeprefix("nats://") for server in self.servers.values())
        self._dead: set[str] = set()

    def start(self) -> None:
        for server in self.servers.values():
            server.start()

    def kill(self, name: str) -> None:
        """`kill -9` of one server."""
        self.servers[name].kill()
        self._dead.add(name)

    def restart(self, name: str) -> None:
        """Start one that was killed, on the disk that it left."""
        self.servers[name].start()
        self._dead.remove(name)

    def kill_all(self) -> None:
        for server in self.servers.values():
            server.kill()

    async def ready(self) -> None:
        """Wait until the servers are a cluster that answers."""

        async def answers() -> bool:
            with contextlib.suppress(APIError, nats.errors.Error, OSError):
                async with self.asked() as js:
                    await js.account_info()
                    return True
            return False

        await until(answers, "the cluster elects nobody", ELECTION_S_MAX)

    @contextlib.asynccontextmanager
    async def asked(self) -> AsyncIterator[JetStreamContext]:
        """A connection to a living server."""
        living = [server.url for name, server in self.servers.items() if name not in self._dead]
        client = await nats.connect(living, max_reconnect_attempts=1, connect_timeout=1)
        try:
            yield client.jetstream(timeout=2)
        finally:
            await client.close()

    async def leader(self, stream: str) -> str:
        """The server that leads the stream, once there is one and every living server has all of it."""
        found: list[StreamInfo] = []

        async def told() -> bool:
            with contextlib.suppress(APIError, nats.errors.Error, OSError):
                async with self.asked() as js:
                    found[:] = [await js.stream_info(stream)]
                return self._whole(found[0])
            return False

        await until(told, f"{stream} has no leader with copies", ELECTION_S_MAX)
        cluster = found[0].cluster
        assert cluster is not None
        assert cluster.leader is not None
        return cluster.leader

    def _whole(self, info: StreamInfo) -> bool:
        assert info.cluster is not None, "a stream of a cluster"
        living = self.servers.keys() - self._dead
        current = {peer.name for peer in info.cluster.replicas or () if peer.current and not peer.offline}
        return info.cluster.leader in living and current | {info.cluster.leader} == living

    async def copies(self, stream: str) -> int:
        """How many servers have the stream."""
        async with self.asked() as js:
            return (await js.stream_info(stream)).config.num_replicas or 1

    async def keeper_of_only_consumer(self, stream: str) -> str:
        """The server that leads the one consumer that a stream has."""
        async with self.asked() as js:
            (found,) = await js.consumers_info(stream)
        assert found.cluster is not None
        assert found.cluster.leader is not None
        return found.cluster.leader


@contextlib.contextmanager
def running_cluster(disk: str = "1TB") -> Iterator[NatsCluster]:
    """A new cluster, gone afterwards with its folders."""
    folder = Path(tempfile.mkdtemp(prefix="nipmesh-nats-cluster-"))
    cluster = NatsCluster(folder, disk)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.kill_all()
        shutil.rmtree(folder, ignore_errors=True)
