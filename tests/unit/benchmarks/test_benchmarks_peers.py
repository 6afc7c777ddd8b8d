"""A peer that cannot be had is a figure that says why, never a made-up number and never the end of the benchmark."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from benchmarks.peers import PeerMissingError, go_control_plane, istio
from benchmarks.render import table

GO_PEERS = [partial(go_control_plane, []), partial(istio, 8, 3)]


@pytest.mark.parametrize("measure", GO_PEERS, ids=["go-control-plane", "istio"])
def test_without_go_the_peer_says_so(
    measure: partial[dict[str, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PeerMissingError, match="there is no Go on this machine"):
        measure(tmp_path)


@pytest.mark.parametrize("measure", GO_PEERS, ids=["go-control-plane", "istio"])
def test_a_module_that_cannot_be_had_is_the_reason(
    measure: partial[dict[str, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = tmp_path / "bin" / "go"
    go.parent.mkdir()
    go.write_text('#!/bin/sh\n[ "$1" = get ] || exit 0\necho "$2: no such host" >&2\nexit 1\n')
    go.chmod(0o755)
    monkeypatch.setenv("PATH", str(go.parent))
    with pytest.raises(PeerMissingError, match=r"`go get .*` failed: [a-z.]+/.*@v.*: no such host"):
        measure(tmp_path)


def test_a_missing_peer_is_in_the_table() -> None:
    printed = table({"cold_s": 1.5, "istio_skipped": "there is no Go on this machine"})
    assert printed.splitlines()[2:] == ["| cold_s | 1.500 |", "| istio_skipped | there is no Go on this machine |"]
