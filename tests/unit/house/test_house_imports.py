"""The house stands as it was drawn: imports go one way, and the generator knows nobody's services."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
PIPELINE = (
    "manifest",
    "model",
    "catalog",
    "analysis",
    "scaffold",
    "resources",
    "render",
    "pki",
    "introspection",
    "outputs",
    "cli",
)
"""Rooms of the generator; each may import those before it."""
SERVICES = ("encoding", "chassis", "nostr", "relays", "storage", "events", "lightning", "nip", "invoice", "payment")
"""Rooms of the services; the last three may not import each other."""
APART = {"nip", "invoice", "payment"}


def imports(package: str) -> Iterator[tuple[str, str, str]]:
    """(file, its room, imported module) for every import of the project's own packages."""
    root = REPOSITORY / package
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).parts
        room = parts[0] if len(parts) > 1 else ""
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                if module.split(".")[0] in {"generator", "services", "benchmarks", "tests"}:
                    yield str(file.relative_to(REPOSITORY)), room, module


@pytest.mark.parametrize(("package", "rooms"), [("generator", PIPELINE), ("services", SERVICES)])
def test_every_room_has_its_place(package: str, rooms: tuple[str, ...]) -> None:
    found = {path.name for path in (REPOSITORY / package).iterdir() if (path / "__init__.py").exists()}
    found |= {path.parent.name for path in (REPOSITORY / package).glob("*/*.py")}
    assert found == set(rooms)


@pytest.mark.parametrize(("package", "rooms"), [("generator", PIPELINE), ("services", SERVICES)])
def test_imports_go_one_way(package: str, rooms: tuple[str, ...]) -> None:
    wrong = []
    for file, room, module in imports(package):
        top, _, rest = module.partition(".")
        other = rest.split(".")[0]
        if (
            top != package
            or (room and other and rooms.index(other) > rooms.index(room))
            or (room in APART and other in APART - {room})
        ):
            wrong.append(f"{file} imports {module}")
    assert not wrong


def test_the_generator_knows_nobodys_services() -> None:
    word = re.compile(r"(?<![a-z.])(nip|invoice|payment|bolt11|nostr|courier|customs|waybill)(?![a-z])", re.IGNORECASE)
    sources = [*(REPOSITORY / "generator").rglob("*.py"), *(REPOSITORY / "envoy").rglob("*.j2")]
    found = {f"{path.relative_to(REPOSITORY)}: {line.strip()}" for path in sources for line in _code(path, word)}
    assert not found


def _code(path: Path, word: re.Pattern[str]) -> Iterator[str]:
    """Lines with the word, outside of docstrings' examples."""
    if path.suffix != ".py":
        yield from (line for line in path.read_text().split("\n") if word.search(line))
        return
    tree = ast.parse(path.read_text())
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in prose
            and word.search(node.value)
        ):
            yield node.value
        if isinstance(node, ast.Name) and word.search(node.id):
            yield node.id


def test_no_python_lives_beside_envoys_templates() -> None:
    assert not list((REPOSITORY / "envoy").rglob("*.py"))


def test_the_foreign_team_does_not_know_us() -> None:
    ours = {"generator", "services", "nipmesh", "support", "benchmarks"}
    files = sorted((REPOSITORY / "tests" / "foreign" / "apps").rglob("*.py"))
    assert files
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    modules = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    modules |= {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    assert not {module.split(".")[0] for module in modules} & ours
