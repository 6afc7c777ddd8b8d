"""One running mesh for every test of this folder, and users who are logged in.

`pytest tests/mesh/test_render_executions.py --update-docs` writes what was measured; read the difference before you commit it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc.aio
import pytest

from support.mesh import RunningMesh, with_relay
from support.nostr import User, bearer
from support.nostr_relay import NostrRelay, running_relay

FOLDER = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-docs", action="store_true", help="rewrite what the documentation says was measured")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests on the one running mesh come last: beside it there is not room for the Envoys of the others.

    Each file that an Envoy follows takes one of the user's inotify instances, and Linux allows 128 by default.
    """
    items.sort(key=lambda item: item.path.parent == FOLDER and "mesh" in getattr(item, "fixturenames", ()))


@pytest.fixture
def update_docs(request: pytest.FixtureRequest) -> bool:
    """Whether to write what was measured instead of comparing."""
    return bool(request.config.getoption("--update-docs", default=False))


@pytest.fixture(scope="session")
def relay() -> Iterator[NostrRelay]:
    """A Nostr relay, where apps meet the wallets of the mesh."""
    with running_relay() as running:
        yield running


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory, relay: NostrRelay) -> Iterator[RunningMesh]:
    """The repository's mesh, all replicas ready; nothing of it is left afterwards."""
    running = RunningMesh(tmp_path_factory.mktemp("mesh"), with_relay(relay.url))
    running.up()
    pids = process_ids(running)
    try:
        yield running
    finally:
        running.run("down")
        leftover = [pid for pid in pids if alive(pid)]
        for pid in leftover:
            os.kill(pid, signal.SIGKILL)
    assert not leftover, f"processes left behind: {leftover}"


def process_ids(running: RunningMesh) -> list[int]:
    """Every process of the mesh that `status` names."""
    services = running.status()["services"].values()
    replicas = [replica for service in services for replica in service["replicas"]]
    return [replica[key] for replica in replicas for key in ("pid", "sidecar_pid")]


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.fixture
async def channel(mesh: RunningMesh) -> AsyncIterator[grpc.aio.Channel]:
    """A plain channel to the gateway."""
    async with mesh.channel() as opened:
        yield opened


@pytest.fixture
async def alice(mesh: RunningMesh, channel: grpc.aio.Channel) -> User:
    """A user with a key of her own and a token from Login."""
    user = User()
    await user.login(channel, f"http://{mesh.gateway}")
    return user


@pytest.fixture
async def bob(mesh: RunningMesh, channel: grpc.aio.Channel) -> User:
    """Another user."""
    user = User()
    await user.login(channel, f"http://{mesh.gateway}")
    return user


@pytest.fixture(scope="session")
def operator(mesh: RunningMesh) -> User:
    """Who may deposit: a development token with the operator's role."""
    user = User()
    user.metadata = bearer(mesh.token(user.pubkey, "operator"))
    return user
