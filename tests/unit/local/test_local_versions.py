"""What Envoy says of its subscriptions, against what stands in the files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from generator.outputs.files import publish
from generator.outputs.files.versions import published_versions
from generator.outputs.local.confirm import WORDS, shortened
from generator.outputs.local.table import status_table
from generator.outputs.local.versions import Heard, State, Subscription, hear, hear_all, parse, state_of, worst
from generator.render import render
from support.meshes import repository_mesh, repository_placement

STATS = {
    "listener_manager.lds.version_text": "aa",
    "listener_manager.lds.update_success": 3,
    "listener_manager.lds.update_rejected": 1,
    "listener_manager.lds.update_failure": 2,
    "cluster_manager.cds.version_text": "bb",
    "http.egress.rds.egress.version_text": "cc",
    "http.inbound.rds.in.bound.update_success": 4,
    "sds.leaf.version_text": "dd",
    "cluster.outbound_nip.version_text": "ee",
    "cluster.outbound_nip.warming_state": 7,
    "cluster_manager.warming_clusters": 2,
    "listener_manager.total_listeners_warming": 1,
    "server.dynamic_unknown_fields": 5,
}


def document(stats: dict[str, Any]) -> dict[str, Any]:
    entries = [{"name": name, "value": value} for name, value in stats.items()]
    return {"stats": [*entries, {"histograms": {}}]}


def test_every_kind_is_read() -> None:
    heard = parse(document(STATS))
    assert heard.subscription(("listeners", "")) == Subscription(version="aa", taken=3, refused=3)
    assert heard.subscription(("clusters", "")).version == "bb"
    assert heard.subscription(("routes", "egress")).version == "cc"
    assert heard.subscription(("routes", "in.bound")).taken == 4
    assert heard.subscription(("secrets", "leaf")).version == "dd"
    assert heard.subscription(("endpoints", "outbound_nip")).version == "ee"
    assert heard.subscription(("routes", "nobody")) == Subscription()
    assert (heard.warming, heard.unknown_fields) == (3, 5)


def test_states() -> None:
    heard = parse(document(STATS))
    assert state_of(("routes", "egress"), "cc", heard) is State.CURRENT
    assert state_of(("routes", "egress"), "xx", heard) is State.STALE
    assert state_of(("listeners", ""), "xx", heard) is State.REFUSED
    assert state_of(("routes", "new"), "xx", Heard()) is State.STALE
    assert worst([State.CURRENT, State.STALE]) is State.STALE
    assert worst([State.REFUSED, State.STALE]) is State.REFUSED
    assert worst([]) is State.CURRENT


async def test_an_envoy_that_is_not_there_is_left_out(tmp_path: Path) -> None:
    assert await hear(tmp_path / "admin.sock") is None
    assert await hear_all({"a-0": tmp_path / "admin.sock"}) == {}


def test_versions_stand_at_the_head_of_the_files(tmp_path: Path) -> None:
    rendered = render(repository_mesh(), replace(repository_placement(), directory=tmp_path))
    publish(rendered, tmp_path)
    versions = published_versions(tmp_path, "payment-0")
    assert versions.keys() == {
        ("listeners", ""),
        ("clusters", ""),
        ("routes", "egress"),
        ("routes", "inbound"),
        ("endpoints", "outbound_invoice"),
        ("endpoints", "outbound_nip"),
        ("secrets", "authority"),
        ("secrets", "leaf"),
    }
    assert all(len(version) == 16 for version in versions.values())
    assert published_versions(tmp_path, "nobody-0") == {}
    (tmp_path / "payment-0" / "lds" / "lds.json").write_text("{}")
    assert ("listeners", "") not in published_versions(tmp_path, "payment-0")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"[2026][1][warning][config] [x.cc:81] Filesystem config update rejected: bad domain\n", "bad domain"),
        (
            b'Filesystem config update failure: in /x.json, no JSON (near 3): {"version_info": 1}\n',
            "in /x.json, no JSON (near 3",
        ),
    ],
)
def test_envoys_words_are_found_without_what_they_quote(line: bytes, words: str) -> None:
    (found,) = WORDS.findall(b'{"path": "/x"}\n' + line + b'{"path": "/y"}\n')
    assert shortened(found) == words


def entry(state: str | None, **kinds: dict[str, Any]) -> dict[str, Any]:
    shown = {kind: {} for kind in ("listeners", "clusters", "routes", "endpoints", "secrets")} | kinds
    processes = {"app": "ready", "pid": 1, "sidecar": "ready", "sidecar_pid": 2, "restarts": 0, "sidecar_restarts": 0}
    configuration = {"version": "0123456789abcdef", "state": state, **shown}
    return processes | {"in_rotation": True, "certificate_expiry": None, "configuration": configuration}


def test_the_table_sums_up() -> None:
    replicas = [
        entry("current") | {"name": "a-0"},
        entry("refused", clusters={"clusters": {"state": "refused"}}, routes={"x": {"state": "current"}})
        | {"name": "a-1"},
        entry("stale", endpoints={"x": {"state": "stale"}}, secrets={"y": {"state": "stale"}}) | {"name": "a-2"},
        entry(None) | {"name": "a-3"},
    ]
    table = status_table(
        {"mesh": "m", "state": "ready", "gateway": None, "events": None, "services": {"a": {"replicas": replicas}}}
    )
    console = Console(width=160)
    with console.capture() as captured:
        console.print(table)
    rows = {line.split()[1]: line for line in captured.get().splitlines() if "a-" in line}
    assert "01234567 current" in rows["a-0"]
    assert "│ clusters refused" in rows["a-1"]
    assert "endpoints, secrets stale" in rows["a-2"]
    assert "current" not in rows["a-3"]
