"""The carrier's mesh of `tests/foreign`, run by the real CLI in a folder of its own, and clients of it with generated stubs.

mesh = CourierMesh(folder)                    # with the machine, which is in JavaScript
mesh = CourierMesh(folder, without_machine, lambda document: document["services"]["tariff"].update(replicas=3))
mesh.up()
call = mesh.metadata(call_id, fault="at=customs/Declare; code=UNAVAILABLE; times=1")
...
mesh.seen(call_id, "customs/Declare")         # how often an application saw it, whatever the caller thinks
"""

from __future__ import annotations

import atexit
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from importlib import import_module, resources
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from support.mesh import REPOSITORY, RunningMesh, free_port

FOREIGN = REPOSITORY / "tests" / "foreign"
MACHINE = Path("apps") / "sorting"
INSTALL_SECONDS_MAX = 120
PROTO_FOLDERS = ("protos", "legacy")

Document = dict[str, Any]
Edit = Callable[[Document], object]


def missing_toolchain() -> str | None:
    """Why the machine cannot run here; None when it can."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            return f"the carrier's sorting machine is in JavaScript, and {program} is not installed"
    return None


@cache
def node_modules() -> Path:
    """The machine's locked dependencies, installed beside its sources once. An assertion fails when npm does."""
    folder = FOREIGN / MACHINE
    installed = folder / "node_modules" / ".package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < (folder / "package-lock.json").stat().st_mtime:
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_SECONDS_MAX, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return installed.parent


def without_machine(document: Document) -> None:
    """The same carrier with a depot that sorts by hand: everything is Python, and vans talk to tracking."""
    services = document["services"]
    tracking = services.pop("sorting")["calls"]["tracking"]
    services["delivery"] |= {"env": {"DEPOT": "floor"}, "calls": {"tracking": tracking}}
    del document["gateway"]["expose"]["sorting"]


def only(*kept: str) -> Edit:
    """A part of the carrier: these services, and the calls among them. Each Envoy costs a user inotify instances."""

    def edit(document: Document) -> None:
        services = document["services"] = {name: document["services"][name] for name in kept}
        gateway = document["gateway"]
        gateway["expose"] = {name: methods for name, methods in gateway["expose"].items() if name in kept}
        for service in services.values():
            calls = {name: methods for name, methods in service.pop("calls", {}).items() if name in kept}
            service |= {"calls": calls} if calls else {}

    return edit


def setting(service: str, **values: Any) -> Edit:
    """The same with these keys of one service."""
    return lambda document: document["services"][service].update(values)


def manifest_document() -> Document:
    """The carrier's manifest as it is written."""
    return dict(yaml.safe_load((FOREIGN / "mesh.yaml").read_text()))


class CourierMesh(RunningMesh):
    """A copy of the carrier's repository in `directory`, on free ports; each edit changes its manifest first."""

    def __init__(self, directory: Path, *edits: Edit) -> None:
        self.directory = directory
        self.gateway = f"127.0.0.1:{free_port()}"
        self.document = manifest_document()
        self.document["services"]["customs"]["listen"] = f"127.0.0.1:{free_port()}"
        for edit in edits:
            edit(self.document)
        shutil.copytree(
            FOREIGN, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules", "__pycache__", ".*")
        )
        self.write(self.document)
        if self.has_machine:
            (directory / MACHINE / "node_modules").symlink_to(node_modules())

    @property
    def has_machine(self) -> bool:
        return "sorting" in self.document["services"]

    def write(self, document: Document) -> None:
        """Write the manifest."""
        (self.directory / "mesh.yaml").write_text(yaml.safe_dump(document, sort_keys=False))

    @staticmethod
    def metadata(call_id: str, fault: str | None = None) -> tuple[tuple[str, str], ...]:
        """What a call carries so that applications note it, and misbehave; see `apps/common/behaviour.py`."""
        return (("x-call-id", call_id), *((("x-fault", fault),) if fault is not None else ()))

    def executions(self, call_id: str) -> list[dict[str, Any]]:
        """What every application noted about a call, the dead ones' notes included."""
        notes = []
        for file in sorted((self.directory / ".nipmesh" / "data").glob("*/executions.jsonl")):
            notes += [json.loads(line) for line in file.read_text().splitlines()]
        return [note for note in notes if note["call_id"] == call_id]

    def seen(self, call_id: str, where: str) -> int:
        """How often the handler of SERVICE/METHOD began for this call."""
        return self._count(call_id, where, "seen")

    def done(self, call_id: str, where: str) -> int:
        """How often its work took effect."""
        return self._count(call_id, where, "done")

    def _count(self, call_id: str, where: str, event: str) -> int:
        service, _, method = where.partition("/")
        return sum(
            note["event"] == event and note["service"] == service and note["method"].endswith(f"/{method}")
            for note in self.executions(call_id)
        )

    def egress(self, service: str, index: int = 0) -> str:
        """Where an application hands its calls over, as a gRPC target: a test can speak in its place."""
        return str(self.replicas(service)[index]["egress"])


@cache
def _stub_folder() -> Path:
    """Stubs of every proto, generated once per test run into a temporary folder that is an import root from then on."""
    folder = Path(tempfile.mkdtemp(prefix="courier-stubs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    roots = [*(FOREIGN / name for name in PROTO_FOLDERS), Path(str(resources.files("grpc_tools") / "_proto"))]
    names = sorted(str(path) for name in PROTO_FOLDERS for path in (FOREIGN / name).rglob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", *(f"-I{root}" for root in roots)]
    subprocess.run([*command, f"--python_out={folder}", f"--grpc_python_out={folder}", *names], check=True)
    sys.path.append(str(folder))
    return folder


def stubs(proto: str) -> ModuleType:
    """The generated messages of a file, e.g. `courier/booking/v1/booking`."""
    _stub_folder()
    return import_module(f"{proto.replace('/', '.')}_pb2")


def grpc_stubs(proto: str) -> ModuleType:
    """The generated client of a file. `returns` has none: its method is called like a keyword of Python."""
    _stub_folder()
    return import_module(f"{proto.replace('/', '.')}_pb2_grpc")
