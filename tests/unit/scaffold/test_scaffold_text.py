"""Whatever a folder or a file is called, the manifest that is written reads back as it was meant."""

from __future__ import annotations

from pathlib import Path

import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from generator.manifest import load_manifest
from generator.manifest.load import load_bytes
from generator.scaffold import Plan, PlannedService, manifest_text, plan_of
from generator.scaffold.programs import Program
from generator.scaffold.text import scalar

PRINTABLE = st.text(st.characters(exclude_categories=("C", "Z"), include_characters=" "), min_size=1, max_size=20)
NAMES = PRINTABLE.filter(lambda name: name.strip() == name)


@given(NAMES)
@example("on")
@example("No")
@example(".")
@example(".5")
@example(".inf")
@example("./1")
@example("a: b")
@example("a #b")
@example("null")
@example("-")
@example("~")
@example("é")
@example('"')
@settings(max_examples=200)
def test_a_text_reads_back(text: str) -> None:
    assert yaml.safe_load(f"key: {scalar(text)}   # comment") == {"key": text}
    assert yaml.safe_load(f"key: [{scalar(text)}]") == {"key": [text]}


@given(root=NAMES, source=NAMES, cwd=NAMES)
@settings(max_examples=100)
def test_a_plan_reads_back(root: str, source: str, cwd: str) -> None:
    program = Program(
        run=f"python {source!r}", cwd=cwd, source=f"{source}\n.py", serves=frozenset({"A"}), calls=frozenset(),
        reads_listen=False, reads_port=False, answers_health=False,
    )  # fmt: skip
    service = PlannedService(name="off", serves=("a.A",), files=(f"{root}\r/a.proto",), program=program)
    text = manifest_text(Plan(mesh="no", protos=(root,), services=(service,)))
    loaded = load_bytes(text.encode())
    assert not [finding for finding in loaded.reporter.findings if finding.code.startswith("NM0")]
    assert yaml.safe_load(text)["protos"] == [root]
    entry = yaml.safe_load(text)["services"]["off"]
    assert (entry["run"], entry["cwd"]) == (f"python {source!r}", cwd)


def test_programs_in_folders_with_spaces_are_one_word(tmp_path: Path) -> None:
    (tmp_path / "my protos").mkdir()
    (tmp_path / "my protos" / "a.proto").write_text(
        'syntax = "proto3"; package a; message M {} service A { rpc Do(M) returns (M); }'
    )
    (tmp_path / "my server.py").write_text("add_AServicer_to_server(a, s)\nif __name__ == '__main__': ...\n")
    (tmp_path / "mesh.yaml").write_text(manifest_text(plan_of(tmp_path, "m")))
    manifest = load_manifest(tmp_path / "mesh.yaml").manifest
    assert manifest is not None
    assert manifest.protos[0].value == "my protos"
    run = manifest.services[0].value.run
    assert run is not None
    assert run.value == ("python", "my server.py")
