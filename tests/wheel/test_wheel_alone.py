"""The installed wheel, in folders outside the checkout: a project from nothing, and projects that are in its way."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from support.mesh import REPOSITORY, free_port
from support.wheel import Installed

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(240)]

TRAP = 'raise SystemExit("a folder of the project was taken for ours")\n'


@pytest.fixture(scope="module")
def project(alone: Installed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`nipmesh init --example`, in a project that has folders of the names that our packages have."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("services", "generator", "nipmesh_services"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(TRAP)
    done = alone.run("nipmesh", "init", "--example", folder=folder)
    assert done.returncode == 0, done.stderr
    manifest = folder / "mesh.yaml"
    manifest.write_text(manifest.read_text().replace("127.0.0.1:8080", f"127.0.0.1:{free_port()}"))
    return folder


@pytest.fixture(scope="module")
def running(alone: Installed, project: Path) -> Iterator[str]:
    """The example's mesh, in the background; its gateway."""
    try:
        done = alone.run("nipmesh", "up", "--detach", folder=project, PYTHONPATH=".")
        assert done.returncode == 0, done.stdout + done.stderr
        yield done.stdout.split()[-1]
    finally:
        down = alone.run("nipmesh", "down", folder=project, PYTHONPATH=".")
    assert down.returncode == 0, down.stderr


def test_nothing_of_the_checkout_is_in_its_path(alone: Installed, tmp_path: Path) -> None:
    script = "import sys, json, nipmesh_home; nipmesh_home.claim(); import generator; print(json.dumps([*sys.path, generator.__file__]))"
    done = alone.run(str(alone.python), "-c", script, folder=tmp_path)
    assert not [path for path in json.loads(done.stdout) if Path(path).is_relative_to(REPOSITORY)]


def test_the_guard_would_tell(alone: Installed, tmp_path: Path) -> None:
    done = alone.run(str(alone.python), "-c", f"open({str(REPOSITORY / 'mesh.yaml')!r})", folder=tmp_path)
    assert "the checkout was read" in done.stderr


def test_the_version_names_envoy(alone: Installed, tmp_path: Path) -> None:
    done = alone.run("nipmesh", "--version", folder=tmp_path)
    assert done.stdout.splitlines()[0].startswith("nipmesh ")
    assert done.stdout.splitlines()[1].startswith("envoy 1.40.")


def test_every_module_of_the_mesh_imports(alone: Installed, tmp_path: Path) -> None:
    script = (
        "import importlib, pkgutil, nipmesh_home; nipmesh_home.claim(); import generator; found = ["
        "importlib.import_module(module.name).__name__ for module in pkgutil.walk_packages(generator.__path__, 'generator.')"
        " if not module.name.endswith('__main__') and '.example' not in module.name]; print(len(found))"
    )
    done = alone.run(str(alone.python), "-c", script, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 150


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (("explain", "greeting/Greet"), "idempotency_level is NO_SIDE_EFFECTS"),
        (("schema", "--reference"), "# Reference"),
        (("doctor",), "1.40"),
    ],
)
def test_commands_that_need_no_mesh(alone: Installed, project: Path, words: tuple[str, ...], shown: str) -> None:
    done = alone.run("nipmesh", *words, folder=project)
    assert shown in done.stdout, done.stdout + done.stderr
    assert not done.stderr


def test_a_compose_file_needs_an_image(alone: Installed, project: Path) -> None:
    refused = alone.run("nipmesh", "render", "--target", "compose", folder=project)
    assert refused.returncode == 1
    assert "NM613" in refused.stderr
    text = re.sub(r"(\n  greeting:.*\n)", r"\1    image: greeting:1.0\n", (project / "mesh.yaml").read_text())
    (project / "contained.yaml").write_text(text)
    done = alone.run("nipmesh", "-f", "contained.yaml", "render", "--target", "compose", folder=project)
    assert "greeting-0-sidecar" in done.stdout, done.stdout + done.stderr


def test_the_descriptors(alone: Installed, project: Path, tmp_path: Path) -> None:
    done = alone.run("nipmesh", "descriptors", "-o", str(tmp_path / "set.binpb"), folder=project)
    assert done.returncode == 0, done.stderr
    assert b"greeting.v1" in (tmp_path / "set.binpb").read_bytes()


def test_a_project_never_sees_our_packages(alone: Installed, tmp_path: Path) -> None:
    (tmp_path / "services" / "mine").mkdir(parents=True)
    (tmp_path / "services" / "mine" / "app.py").write_text("print('mine')\n")
    done = alone.run(str(alone.python), "-m", "services.mine.app", folder=tmp_path)
    assert done.stdout == "mine\n", done.stderr
    for name in ("services", "generator"):
        absent = alone.run(str(alone.python), "-c", f"import {name}", folder=alone.python.parent)
        assert "ModuleNotFoundError" in absent.stderr


@pytest.mark.parametrize("path", ["", "."])
def test_check_and_render(alone: Installed, project: Path, tmp_path: Path, path: str) -> None:
    checked = alone.run("nipmesh", "check", folder=project, PYTHONPATH=path)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "Envoy accepts the configuration of 3 workloads" in checked.stdout
    rendered = alone.run("nipmesh", "render", "-o", str(tmp_path / "rendered"), folder=project, PYTHONPATH=path)
    assert rendered.returncode == 0, rendered.stderr
    assert list((tmp_path / "rendered").rglob("*bootstrap*"))


def test_the_schema_is_the_one_of_the_checkout(alone: Installed, tmp_path: Path) -> None:
    assert alone.run("nipmesh", "schema", folder=tmp_path).stdout == (REPOSITORY / "mesh.schema.json").read_text()


def test_up_serves_calls_through_the_gateway(alone: Installed, running: str, project: Path) -> None:
    with grpc.insecure_channel(running) as channel:
        greet = channel.unary_unary("/greeting.v1.GreetingService/Greet")
        replicas = {greet(b"\n\x05world", timeout=10, wait_for_ready=True)[-1:] for _ in range(20)}
    assert replicas == {b"0", b"1"}
    status = alone.run("nipmesh", "status", "--output", "json", folder=project, PYTHONPATH=".")
    assert status.returncode == 0, status.stderr
    assert [replica["app"] for replica in json.loads(status.stdout)["services"]["greeting"]["replicas"]] == [
        "ready"
    ] * 2


def test_the_gateway_reflects(running: str, alone: Installed) -> None:
    if shutil.which("grpcurl", path=alone.path) is None:
        pytest.skip("grpcurl is not installed")
    listed = alone.run("grpcurl", "-plaintext", running, "list", folder=Path("/"))
    assert "greeting.v1.GreetingService" in listed.stdout.split()


def test_one_of_our_modules_is_run_by_its_name(alone: Installed, tmp_path: Path) -> None:
    words = ("-P", "-m", "nipmesh_home")
    usage = alone.run(str(alone.python), *words, folder=tmp_path)
    assert (usage.returncode, usage.stderr) == (2, "usage: python -m nipmesh_home MODULE [ARGUMENT]…\n")
    done = alone.run(str(alone.python), *words, "services.encoding.bech32", folder=tmp_path)
    assert done.returncode == 0, done.stderr
