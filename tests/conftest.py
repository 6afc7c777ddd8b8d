"""What tests of several rooms share: a PostgreSQL server, started only when a test asks for it, and what may run beside what."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

import support.forking  # noqa: F401  # before all that imports grpc
from benchmarks.walk import steps
from support.ending import pytest_sessionstart as pytest_sessionstart
from support.postgresql import Server, running_server
from support.wheel import Installed, build, build_environment, copied_sources, installed

hypothesis.settings.register_profile("house", deadline=None)  # how long an example takes says how busy the machine is
hypothesis.settings.load_profile("house")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For `-n 2 --dist loadgroup`: a file stays together, and so do all that start Envoys, of which a machine bears one mesh at a time."""
    for item in items:
        starts_envoys = item.get_closest_marker("mesh") or item.path.parent.name in {"mesh", "docs"}
        item.add_marker(pytest.mark.xdist_group("mesh" if starts_envoys else str(item.path)))


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """What `nipmesh up` sets for its own process does not outlast the test that runs it in this one."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    """The session's server; a test that stops or kills it starts it again."""
    with running_server() as server:
        yield server


@pytest.fixture
def postgresql_url(postgresql: Server) -> Iterator[str]:
    """The URL of a database of the test's own."""
    url = postgresql.new_database()
    yield url
    postgresql.drop_database(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_settings(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The settings of a service that say where its state lies: once on either engine."""
    values: dict[str, Any] = {"data_directory": tmp_path / "data"}
    if request.param == "postgresql":
        values["database_url"] = request.getfixturevalue("postgresql_url")
    return values


@pytest.fixture(scope="session")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python that builds the wheel."""
    return build_environment(tmp_path_factory.mktemp("builder"))


@pytest.fixture(scope="session")
def wheel(builder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of what would be committed."""
    folder = tmp_path_factory.mktemp("wheel")
    return build(builder, copied_sources(folder / "sources"), "wheel", folder / "built")


@pytest.fixture(scope="session")
def alone(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """An environment outside the checkout, made by the commands that docs/five-minutes.md begins with."""
    return installed(wheel, tmp_path_factory.mktemp("alone"), steps()[0][1])
