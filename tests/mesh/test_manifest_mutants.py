"""Mutated manifests end in a configuration that Envoy takes, or in findings with line and column: no traceback, no hang.

`make fuzz` checks 10,000 of them and shows Envoy everything that they become; here are fewer, of which Envoy is shown a
part. A failure prints the command that repeats it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import generator.catalog.catalog as catalog
from support.fuzzing import Complaint, Fuzzer, remembering, setting, shards
from support.mutants import mutant

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(3_600)]
COUNT = setting("NIPMESH_MUTANTS", 1_000)
SEED = setting("NIPMESH_MUTANTS_SEED", 1)
SHOWN_MAX = setting("NIPMESH_MUTANTS_SHOWN", 100)
"""Configurations that Envoy is shown."""
SHARD = 100
SHARDS = shards(COUNT, SHARD)
COMPLAINTS_MAX = 5
"""Complaints of one shard that are made small and printed."""
REPLAYED = os.environ.get("NIPMESH_MUTANT")
"""`seed:number`, and perhaps `:` and the operations that are kept: check this one alone."""


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzer]:
    made = Fuzzer(tmp_path_factory.mktemp("mutants"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "compile_sources", remembering())
        yield made


def told(complaints: list[Complaint], fuzzer: Fuzzer) -> str:
    return "\n\n".join(str(fuzzer.smallest(complaint)) for complaint in complaints[:COMPLAINTS_MAX])


@pytest.mark.skipif(REPLAYED is not None, reason="one mutant is replayed")
@pytest.mark.parametrize("numbers", SHARDS, ids=lambda numbers: f"{numbers.start}-{numbers.stop - 1}")
def test_mutants_end_in_configuration_or_findings(numbers: range, fuzzer: Fuzzer) -> None:
    checked = [fuzzer.check(mutant(SEED, number)) for number in numbers]
    complaints = [complaint for complaint in checked if complaint is not None]
    complaints += fuzzer.ask_envoy(max(1, SHOWN_MAX // len(SHARDS)))
    assert not complaints, f"{len(complaints)} complaints\n{told(complaints, fuzzer)}"


@pytest.mark.skipif(REPLAYED is not None, reason="one mutant is replayed")
def test_mutants_reach_every_stage(fuzzer: Fuzzer) -> None:
    """That few pass, or few fail, would say that the mutator is too wild or too tame."""
    counts = fuzzer.counts
    print(f"\n{counts}")
    assert counts.mutants >= COUNT
    assert 0.1 * counts.mutants < counts.accepted < 0.9 * counts.mutants
    assert counts.twins > 0.1 * counts.mutants
    assert len(counts.codes) > 30


@pytest.mark.skipif(REPLAYED is None, reason="set NIPMESH_MUTANT=SEED:NUMBER to replay one")
def test_one_mutant(fuzzer: Fuzzer) -> None:
    assert REPLAYED is not None
    seed, number, *kept = REPLAYED.split(":")
    only = tuple(int(index) for index in kept[0].split(",") if index) if kept else None
    found = mutant(int(seed), int(number), only)
    complaints = fuzzer.ask_envoy_again(found)
    assert not complaints, str(complaints[0])


def test_the_same_mutant_twice() -> None:
    assert all(mutant(SEED, number) == mutant(SEED, number) for number in range(50))


def test_a_replayed_part_of_a_mutant_is_a_part_of_it(tmp_path: Path) -> None:
    whole = next(found for found in (mutant(SEED, number) for number in range(500)) if len(found.operations) > 2)
    part = mutant(whole.seed, whole.number, whole.kept[:1])
    assert len(part.operations) == 1
    assert set(part.operations) <= set(whole.operations)
