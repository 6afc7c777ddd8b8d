"""The bank test on each engine: short here, `make bank` for long; a seed that fails is run again alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from support.cluster import running_cluster
from support.postgresql import Server

from .bank import OPERATIONS_PER_KILL, Bank, kill_something

OPERATIONS = int(os.environ.get("NIPMESH_BANK_OPERATIONS", "400"))
SEEDS = range(1, int(os.environ.get("NIPMESH_BANK_SEEDS", "1")) + 1)
ONLY = os.environ.get("NIPMESH_BANK_SEED")


@pytest.mark.timeout(60 + OPERATIONS)
@pytest.mark.parametrize("seed", [int(ONLY)] if ONLY else SEEDS)
async def test_what_callers_were_told_is_the_truth(short_folder: Path, engine: Server | None, seed: int) -> None:
    async with running_cluster(short_folder, engine) as cluster:
        bank = Bank(cluster, seed=seed, operations=OPERATIONS, victims=lambda dice: kill_something(cluster, dice))
        try:
            await bank.run()
        except BaseException:
            sys.stderr.write(f"replay: NIPMESH_BANK_SEED={seed} NIPMESH_BANK_OPERATIONS={OPERATIONS} make bank\n")
            sys.stderr.write(cluster.logs())
            raise
    print(f"seed {seed}: {bank.kills} kills, {dict(sorted(bank.book.outcomes.items()))}")
    assert bank.kills >= OPERATIONS // (2 * OPERATIONS_PER_KILL) - 1
