"""Takes mutated manifests all the way, and says what is wrong with the generator, not with the manifest."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from generator.analysis import check_manifest
from generator.catalog.protoc import ProtocError, Source, compile_sources
from generator.manifest import Finding, Severity
from generator.model import Mesh
from generator.outputs.files import contents, default_placement
from generator.outputs.files.validation import loadable, throwaway_leaf, validate_bootstrap
from generator.outputs.local.binary import find_envoy
from generator.render import render
from generator.resources import WorkloadResources, twin
from support.mutants import Mutant, mutant, sources
from support.pairs import write_pair

CPU_SECONDS_MAX = 20.0
"""For one mutant; the largest legal manifests need a second on an idle machine."""
DIRECTORY = Path("/mesh")
LINE_END = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
"""Where YAML ends a line (https://yaml.org/spec/1.1/#id872142)."""
PARALLEL = 2
TEXT_CHARACTERS_MAX = 3_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Complaint:
    """Something that the generator did wrong with one mutant."""

    mutant: Mutant
    text: str

    def __str__(self) -> str:
        key = f"{self.mutant.seed}:{self.mutant.number}"
        kept = ",".join(map(str, self.mutant.kept))
        shown = self.mutant.content.decode("utf-8", "backslashreplace")[:TEXT_CHARACTERS_MAX]
        replay = f"NIPMESH_MUTANT={key}:{kept} .venv/bin/python -m pytest tests/mesh/test_manifest_mutants.py"
        what = f"{self.mutant.source.name} after {', '.join(self.mutant.operations)}"
        return f"{self.text}\nmutant: {what}\nreplay: {replay}\n{shown}"


@dataclass(slots=True)
class Counts:
    """What became of the mutants."""

    mutants: int = 0
    accepted: int = 0
    findings: int = 0
    twins: int = 0
    """Different configurations of a workload."""
    shown: int = 0
    """Those of them that Envoy was shown."""
    codes: set[str] = field(default_factory=set)


class Fuzzer:
    """Checks mutants; remembers the configurations that Envoy has seen."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.counts = folder, Counts()
        self.folders = {source: self._prepared(source, str(index)) for index, source in enumerate(sources())}
        self.envoy, self.leaf = find_envoy(), throwaway_leaf()
        self.waiting: dict[str, tuple[Mutant, dict[str, Any]]] = {}
        self.known: set[str] = set()
        self.files = itertools.count()

    def _prepared(self, source: Path, name: str) -> Path:
        """A folder that has all that the source's folder has, but the manifest."""
        folder = self.folder / name
        folder.mkdir()
        (folder / "empty.txt").touch(mode=0o600)
        write_pair(folder, "edge")
        for path in source.parent.iterdir():
            if path != source and not path.name.startswith("."):
                (folder / path.name).symlink_to(path)
        return folder

    def check(self, found: Mutant) -> Complaint | None:
        """Take one mutant up to the files that would be published."""
        self.counts.mutants += 1
        started = time.process_time()
        try:
            text = self._taken(found)
        except Exception:  # noqa: BLE001  (whatever escapes is what is looked for)
            text = traceback.format_exc()
        spent = time.process_time() - started
        if text is None and spent > CPU_SECONDS_MAX:
            text = f"it took {spent:.0f} s"
        return None if text is None else Complaint(mutant=found, text=text)

    def _taken(self, found: Mutant) -> str | None:
        path = self.folders[found.source] / found.source.name
        path.write_bytes(found.content)
        analysis = check_manifest(path)
        self.counts.findings += len(analysis.findings)
        self.counts.codes |= {finding.code for finding in analysis.findings}
        wrong = wrong_findings(analysis.findings, found.content)
        if wrong is not None or analysis.mesh is None:
            is_told = any(finding.severity is Severity.ERROR for finding in analysis.findings)
            return wrong or (None if is_told else "there is neither a mesh nor an error")
        self.counts.accepted += 1
        self._rendered(found, analysis.mesh)
        return None

    def _rendered(self, found: Mutant, mesh: Mesh) -> None:
        """Render; keep what Envoy has not seen. Replicas differ in addresses only, so the first stands for all."""
        for workload in render(mesh, default_placement(mesh, DIRECTORY)).workloads:
            assert contents(workload)
            if workload.name == "gateway" or workload.name.endswith("-0"):
                self._keep(found, workload)

    def _keep(self, found: Mutant, workload: WorkloadResources) -> None:
        version = hashlib.sha256(json.dumps(twin(workload), sort_keys=True).encode()).hexdigest()
        if version not in self.known:
            self.known.add(version)
            self.counts.twins += 1
            secrets = tuple(loadable(secret, self.leaf) for secret in workload.secrets)
            self.waiting[version] = (found, twin(workload, secrets))

    def ask_envoy(self, count_max: int) -> list[Complaint]:
        """Show Envoy the configurations that wait, or as many of them, spread evenly; the others are let go."""
        waiting, self.waiting = list(self.waiting.values()), {}
        step = max(1, -(-len(waiting) // count_max))
        chosen = waiting[::step]
        self.counts.shown += len(chosen)
        with ThreadPoolExecutor(max_workers=PARALLEL) as pool:
            answers = pool.map(self._ask, (body for _, body in chosen))
        said = zip(chosen, answers, strict=True)
        return [Complaint(mutant=found, text=f"Envoy: {text}") for (found, _), text in said if text is not None]

    def _ask(self, body: dict[str, Any]) -> str | None:
        path = self.folder / f"twin-{next(self.files)}.json"
        path.write_text(json.dumps(body), encoding="utf-8")
        try:
            return validate_bootstrap(self.envoy, path)
        finally:
            path.unlink()

    def smallest(self, complaint: Complaint) -> Complaint:
        """Leave out operations of a mutant as long as something is wrong with what is left."""
        found = complaint.mutant
        for kept in subsets(found.kept):
            less = mutant(found.seed, found.number, kept)
            again = self.check(less)
            answers = [again] if again is not None else self.ask_envoy_again(less)
            if answers:
                return answers[0]
        return complaint

    def ask_envoy_again(self, found: Mutant) -> list[Complaint]:
        """Show Envoy everything of one mutant, seen or not."""
        self.known.clear()
        self.waiting.clear()
        complaint = self.check(found)
        return [complaint] if complaint is not None else self.ask_envoy(1_000_000)


def subsets(kept: tuple[int, ...]) -> Iterable[tuple[int, ...]]:
    """Proper subsets, the small ones first."""
    return itertools.chain.from_iterable(itertools.combinations(kept, size) for size in range(len(kept)))


def wrong_findings(findings: tuple[Finding, ...], content: bytes) -> str | None:
    """Say which finding has no place in the file or does not say what to do."""
    lines = LINE_END.split(content.decode("utf-8-sig", "replace"))
    for finding in findings:
        if not finding.message or not finding.cause or not finding.fix or finding.code not in str(finding):
            return f"a finding says too little: {finding}"
        if not 1 <= finding.line <= len(lines):
            return f"a finding is on line {finding.line} of {len(lines)}: {finding}"
        if not 1 <= finding.column <= len(lines[finding.line - 1]) + 1:
            return f"a finding is in column {finding.column} of {len(lines[finding.line - 1])}: {finding}"
    return None


def remembering(
    original: Callable[[tuple[Path, ...], tuple[Source, ...]], bytes] = compile_sources,
) -> Callable[[tuple[Path, ...], tuple[Source, ...]], bytes]:
    """Compile the same files of the same folders once: they do not change while mutants are checked."""
    known: dict[Any, bytes | ProtocError] = {}

    def compile_once(roots: tuple[Path, ...], found: tuple[Source, ...]) -> bytes:
        if (roots, found) not in known:
            try:
                known[roots, found] = original(roots, found)
            except ProtocError as error:
                known[roots, found] = error
        answer = known[roots, found]
        if isinstance(answer, ProtocError):
            raise answer
        return answer

    return compile_once


def shards(count: int, size: int) -> list[range]:
    """Numbers in parts."""
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


def setting(name: str, default: int) -> int:
    """A number from the environment."""
    return int(os.environ.get(name, "") or default)
