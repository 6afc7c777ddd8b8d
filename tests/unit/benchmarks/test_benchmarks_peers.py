"""A peer that cannot be had is a figure that says why, never a made-up number and never the end of the benchmark."""

from __future__ import annotations

from benchmarks.render import table


def test_a_missing_peer_is_in_the_table() -> None:
    printed = table({"cold_s": 1.5, "go_control_plane_skipped": "there is no Go on this machine"})
    assert printed.splitlines()[2:] == [
        "| cold_s | 1.500 |",
        "| go_control_plane_skipped | there is no Go on this machine |",
    ]
