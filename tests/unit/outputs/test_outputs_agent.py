"""The agent: everything that the other containers read is there before they start, and nobody else's keys."""

from __future__ import annotations

import asyncio
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from generator.outputs.compose import agent as module
from generator.outputs.compose import layout
from generator.outputs.compose.agent import Agent, AgentError
from generator.outputs.compose.layout import ContainerPaths
from generator.outputs.local.events import Journal
from generator.pki import installed_leaf
from support.meshes import REPOSITORY, repository_mesh


@pytest.fixture
def volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folders that Compose would mount, below one of this test's."""
    for name in ("ENVOY", "CERTIFICATES", "SECRETS", "INTROSPECTION", "EVENTS", "EVENT_STORE", "POSTGRESQL_FILES"):
        monkeypatch.setattr(layout, name, tmp_path / name.lower())
    names = [f"{service.name}-{index}" for service in repository_mesh().services for index in range(service.replicas)]
    for name in (*names, "gateway", "events", "postgresql"):
        (layout.ENVOY / name).mkdir(parents=True)
        (layout.CERTIFICATES / name).mkdir(parents=True)
    for folder in (layout.INTROSPECTION, layout.EVENTS, layout.POSTGRESQL_FILES, tmp_path / "state" / "secrets"):
        folder.mkdir(parents=True)
    return tmp_path


def made(volumes: Path, journal: Journal | None = None) -> Agent:
    return Agent(
        mesh=repository_mesh(),
        paths=ContainerPaths(root=volumes / "state"),
        manifest_directory=REPOSITORY,
        journal=journal or Journal(),
    )


def test_every_container_finds_its_files(volumes: Path) -> None:
    made(volumes).fill()
    for workload in layout.ENVOY.iterdir():
        if workload.name not in ("events", "postgresql"):
            assert (workload / "bootstrap.json").is_file()
        leaf = installed_leaf(layout.CERTIFICATES / workload.name)
        assert leaf is not None
    assert {path.name for path in (layout.SECRETS / "nip").iterdir()} == {
        "nip-keystore-key-file",
        "nipmesh-token-key-file",
        "nipmesh-events-credentials-file",
        "events-ca.crt",
        "database.url",
        "database-ca.crt",
    }
    assert {path.name for path in (layout.SECRETS / "payment").iterdir()} == {
        "nipmesh-events-credentials-file",
        "events-ca.crt",
        "database.url",
        "database-ca.crt",
    }
    assert (layout.EVENTS / "nats.json").is_file()


def test_keys_are_nobodys_but_the_owners(volumes: Path) -> None:
    made(volumes).fill()
    for path in (*layout.SECRETS.rglob("*"), *layout.CERTIFICATES.rglob("*.key"), *(volumes / "state").rglob("*.key")):
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    authority = {path.read_bytes() for path in (volumes / "state" / "pki").glob("*.key")}
    assert authority
    given = {
        path.read_bytes()
        for folder in (layout.SECRETS, layout.CERTIFICATES)
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert not authority & given


def test_secrets_stay_the_same_when_it_is_started_again(volumes: Path) -> None:
    made(volumes).fill()
    before = {path: path.read_bytes() for path in layout.SECRETS.rglob("*-file")}
    made(volumes).fill()
    assert {path: path.read_bytes() for path in layout.SECRETS.rglob("*-file")} == before


def test_a_manifest_that_has_grown_is_told(volumes: Path) -> None:
    agent = made(volumes)
    more = replace(agent.mesh, services=tuple(replace(service, replicas=3) for service in agent.mesh.services))
    with pytest.raises(AgentError, match="render --target compose"):
        replace_mesh(agent, more).fill()


def replace_mesh(agent: Agent, mesh: object) -> Agent:
    agent.mesh = mesh  # type: ignore[assignment]
    return agent


def test_sidecars_are_found_and_found_again_elsewhere(volumes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"nip-0.mesh": frozenset({"10.0.0.1"})}

    async def addresses(host: str) -> frozenset[str]:
        return known.get(host, frozenset())

    monkeypatch.setattr(module, "_addresses", addresses)
    agent = made(volumes)
    assert asyncio.run(agent.look()) == {"nip-0": "10.0.0.1"}
    agent.fill()
    endpoints = "".join(path.read_text() for path in (layout.ENVOY / "payment-0").rglob("*.json"))
    assert '"10.0.0.1"' in endpoints
    known["nip-0.mesh"] = frozenset({"10.0.0.1", "10.0.0.0"})
    assert asyncio.run(agent.look()) == {}, "it keeps the address that still holds"
    known["nip-0.mesh"] = frozenset({"10.0.0.9"})
    assert asyncio.run(agent.look()) == {"nip-0": "10.0.0.9"}
    known.clear()
    assert asyncio.run(agent.look()) == {}, "who is gone stays known: health checks say so"
