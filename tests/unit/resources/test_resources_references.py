"""Names that resources use of each other, and the twin that has them all in one place."""

from __future__ import annotations

from dataclasses import replace

import pytest

from generator.render import render
from generator.resources import ResourceError, WorkloadResources, check_references, make_resource, twin
from generator.resources.resource import ResourceType, version_of
from support.meshes import repository_mesh, repository_placement


@pytest.fixture(scope="module")
def payment() -> WorkloadResources:
    return render(repository_mesh(), repository_placement()).workload("payment-0")


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("clusters", "there is no cluster 'outbound_nip'"),
        ("routes", "there is no route 'egress'"),
        ("endpoints", "there is no endpoints 'outbound_nip'"),
        ("secrets", "there is no secret 'leaf'"),
    ],
)
def test_a_name_that_nothing_has_is_found(payment: WorkloadResources, kind: str, problem: str) -> None:
    with pytest.raises(ResourceError, match=problem):
        check_references(replace(payment, **{kind: ()}))


def test_what_nothing_refers_to_is_found(payment: WorkloadResources) -> None:
    stray = make_resource(ResourceType.ENDPOINTS, {"cluster_name": "stray"})
    with pytest.raises(ResourceError, match="stray: nothing refers to it"):
        check_references(replace(payment, endpoints=(*payment.endpoints, stray)))
    check_references(replace(payment, endpoints=(*payment.endpoints, stray)), spare_allowed=True)


def test_two_of_a_name_are_found(payment: WorkloadResources) -> None:
    with pytest.raises(ResourceError, match="there are two of this name"):
        check_references(replace(payment, clusters=(*payment.clusters, payment.clusters[0])))


def test_the_twin_holds_everything_and_reads_nothing(payment: WorkloadResources) -> None:
    body = twin(payment)
    text = str(body)
    assert "path_config_source" not in text
    assert "rds" not in text.replace("records", "")
    static = body["static_resources"]
    assert [listener["name"] for listener in static["listeners"]] == ["egress", "inbound", "scrape"]
    outbound = next(cluster for cluster in static["clusters"] if cluster["name"] == "outbound_nip")
    assert len(outbound["load_assignment"]["endpoints"][0]["lb_endpoints"]) == 2


def test_versions_come_from_content_alone() -> None:
    assert version_of({"a": 1, "b": [2]}) == version_of({"b": [2], "a": 1})
    assert version_of({"a": 1}) != version_of({"a": 2})
