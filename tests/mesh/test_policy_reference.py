"""Every example of the reference changes the configuration in the way that it says, and Envoy takes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from generator.analysis import check_manifest
from generator.manifest import Severity
from generator.manifest.terms import BOTH, CALLEE, CALLER, ROOM_TERMS, TERMS
from generator.model import Mesh
from generator.outputs.files import default_placement, validate_with_envoy
from generator.outputs.reference import Sample, samples
from generator.render import render
from generator.resources import ResourceSet
from generator.resources.references import every
from support.orders import MANIFEST, with_piece, write_protos

pytestmark = pytest.mark.mesh

SAMPLES = samples()
CALLERS, CALLEES = {"checkout-0", "checkout-1", "gateway"}, {"orders-0", "orders-1", "orders-next-0", "orders-blue-0"}
Lines = dict[str, set[str]]


def mesh_of(folder: Path, text: str) -> Mesh:
    folder.mkdir(exist_ok=True)
    write_protos(folder)
    (folder / "mesh.yaml").write_text(text, encoding="utf-8")
    analysis = check_manifest(folder / "mesh.yaml")
    errors = [str(finding) for finding in analysis.findings if finding.severity is Severity.ERROR]
    assert analysis.mesh is not None, errors
    return analysis.mesh


def rendered(folder: Path, text: str) -> ResourceSet:
    mesh = mesh_of(folder, text)
    return render(mesh, default_placement(mesh, Path("/mesh")))


def lines_of(resources: ResourceSet) -> Lines:
    """Every leaf of each workload's configuration with its whole way of keys: what differs is what a setting did."""
    return {
        workload.name: {line for resource in every(workload) for line in leaves(resource.name, resource.body)}
        for workload in resources.workloads
    }


def leaves(way: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(f"{way} {key}", item)
    elif isinstance(value, list):
        for item in value:
            named = item.get("name", "") if isinstance(item, dict) else ""
            yield from leaves(f"{way} {named}", item)
    else:
        yield f"{way} {json.dumps(value)}"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Lines:
    """The manifest without any example."""
    return lines_of(rendered(tmp_path_factory.mktemp("plain"), MANIFEST))


@pytest.fixture(scope="module")
def all_rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ResourceSet]:
    """Every example on its own in the manifest, by its text."""
    folder = tmp_path_factory.mktemp("samples")
    return {
        sample.text: rendered(folder / str(number), with_piece(sample.text)) for number, sample in enumerate(SAMPLES)
    }


def changed(plain: Lines, resources: ResourceSet) -> Lines:
    """What is new in each workload, and what is gone from it."""
    differ = {name: lines ^ plain.get(name, set()) for name, lines in lines_of(resources).items()}
    return {name: lines for name, lines in differ.items() if lines}


def test_every_policy_and_every_room_has_an_example_and_terms() -> None:
    assert {sample.subject for sample in SAMPLES if sample.is_policy} == set(TERMS)
    assert {sample.subject for sample in SAMPLES if not sample.is_policy} == set(ROOM_TERMS)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: f"{sample.subject}-{SAMPLES.index(sample)}")
def test_an_example_changes_what_it_says_where_it_says(
    sample: Sample, plain: Lines, all_rendered: dict[str, ResourceSet]
) -> None:
    terms = (TERMS if sample.is_policy else ROOM_TERMS)[sample.subject]
    new = changed(plain, all_rendered[sample.text])
    if terms.where in {CALLER, BOTH}:
        assert set(new) & CALLERS, "no caller's configuration changed"
    if terms.where in {CALLEE, BOTH}:
        assert set(new) & CALLEES, "no replica's configuration changed"
    if terms.where == CALLEE:
        assert not set(new) & CALLERS, "it concerns the service's own sidecars"


@pytest.mark.parametrize("subject", sorted(TERMS.keys() | ROOM_TERMS.keys()))
def test_the_names_that_envoy_has_for_it_appear_with_its_examples(
    subject: str, plain: Lines, all_rendered: dict[str, ResourceSet]
) -> None:
    terms = TERMS.get(subject) or ROOM_TERMS[subject]
    texts = [sample.text for sample in SAMPLES if sample.subject == subject]
    new = [line for text in texts for lines in changed(plain, all_rendered[text]).values() for line in lines]
    words = {word.strip('"') for line in new for word in line.split()}
    assert set(terms.envoy) <= words, set(terms.envoy) - words


def test_envoy_takes_every_example(all_rendered: dict[str, ResourceSet]) -> None:
    """One run for each replica that differs: the first of each service, and the gateway."""
    for text, resources in all_rendered.items():
        firsts = tuple(each for each in resources.workloads if each.name == "gateway" or each.name.endswith("-0"))
        assert validate_with_envoy(ResourceSet(workloads=firsts)) == (), text
