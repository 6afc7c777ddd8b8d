"""Limits that belong together: what Envoy would refuse of them is told, or does not come about. Found by mutated manifests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from generator.analysis import Analysis

Checker = Callable[..., Analysis]


def written(check: Checker, traffic: str, mesh: str = "") -> Analysis:
    text = "mesh: m\nprotos: [protos]\nMESHservices: {stock: {run: x, serves: [StockService], traffic: TRAFFIC}}\n"
    text += "gateway: {authentication: {issuer: stock}, expose: {stock: [StockService/*]}}\n"
    return check(("TRAFFIC", traffic), ("MESH", f"traffic: {mesh}\n" if mesh else ""), text=text)


def test_the_longest_ejection_is_at_least_the_first(check: Checker) -> None:
    mesh = written(check, "{outlier_detection: {base_ejection_time: 5m}}").mesh
    assert mesh is not None
    outliers = mesh.service("stock").traffic.outlier_detection
    assert (outliers.base_ejection_ms, outliers.ejection_ms_max) == (300_000, 300_000)


def test_a_closer_first_time_wins_over_a_farther_longest(check: Checker) -> None:
    far = "{outlier_detection: {max_ejection_time: 20s}}"
    near = "{outlier_detection: {base_ejection_time: 30s}}"
    mesh = written(check, near, far).mesh
    assert mesh is not None
    outliers = mesh.service("stock").traffic.outlier_detection
    assert outliers.ejection_ms_max >= outliers.base_ejection_ms == 30_000


@pytest.mark.parametrize(
    "traffic",
    [
        "{outlier_detection: {max_ejection_time: 2s}}",
        "{outlier_detection: {base_ejection_time: 1m, max_ejection_time: 30s}}",
        "{retries: {backoff: {base: 2s, max: 1s}}}",
    ],
)
def test_a_longest_time_below_the_first_is_an_error(check: Checker, traffic: str) -> None:
    (finding,) = [finding for finding in written(check, traffic).findings if finding.code == "NM509"]
    assert "is less than" in finding.message
