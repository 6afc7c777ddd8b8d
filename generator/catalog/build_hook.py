"""Build hook: makes at install what is never committed: stubs, their `.pyi`, and two descriptor sets.

- `protos/**/*_pb2.py`, `*_pb2.pyi`, `*_pb2_grpc.py`, `*_pb2_grpc.pyi` beside each `.proto`;
- the same for `services/lightning/lnd/wire/*.proto`, lnd's API, which this mesh calls and does not serve;
- `protos/buf/validate/validate_pb2.py`, because protovalidate's wheel has the rules' descriptor but no stub of it;
- `generator/resources/data/validate.binpb`, that descriptor, so that protos which import it can be compiled;
- `generator/resources/data/envoy.binpb`, every Envoy message that xds-protos knows. xds-protos is needed here only: at
  run time it would overwrite files of other distributions.

`python -m generator.catalog.build_hook` makes the stubs anew in a checkout, after a change of a `.proto`.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.resources
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

VALIDATE_PROTO = "buf/validate/validate.proto"
DATA_DIRECTORY = Path("generator/resources/data")
FOREIGN_PROTOS = Path("services/lightning/lnd/wire")
"""Protos of programs that the services call outside the mesh; imported by their path below the repository."""


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]  # hatchling's own parameter is not exported
    """hatchling's entry point; it finds the class by its base."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make everything before files are collected; a source distribution carries sources only."""
        if self.target_name == "sdist":
            return
        root = Path(self.root)
        make_stubs(root)
        write(root / DATA_DIRECTORY / "envoy.binpb", envoy_descriptor_set().SerializeToString(deterministic=True))


def make_stubs(root: Path) -> None:
    """Write stubs for every `.proto` of ours and of FOREIGN_PROTOS. Raises RuntimeError with protoc's words when one is wrong."""
    protos = root / "protos"
    validate = root / DATA_DIRECTORY / "validate.binpb"
    write(validate, validate_descriptor_set().SerializeToString(deterministic=True))
    names = sorted(str(path.relative_to(protos)) for path in (protos / "nipmesh").rglob("*.proto"))
    protoc(protos, validate, [*outputs(protos, "python", "mypy", "grpc_python", "mypy_grpc"), *names])
    protoc(protos, validate, [*outputs(protos, "python", "mypy"), VALIDATE_PROTO])
    foreign = sorted(str(path.relative_to(root)) for path in (root / FOREIGN_PROTOS).glob("*.proto"))
    protoc(root, validate, [*outputs(root, "python", "mypy", "grpc_python", "mypy_grpc"), *foreign])


def outputs(folder: Path, *kinds: str) -> list[str]:
    """Protoc's options to write these kinds of stubs beside the sources below `folder`."""
    plugins = [plugin_option(name) for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    return [*plugins, *(f"--{kind}_out={folder}" for kind in kinds)]


def protoc(protos: Path, validate: Path, arguments: list[str]) -> None:
    """Run grpcio-tools' protoc over source files and the validation rules' descriptor together."""
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--descriptor_set_in={validate}"]
    command += [f"--proto_path={protos}", f"--proto_path={well_known}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"protoc refused the protos:\n{done.stderr}")


def plugin_option(name: str) -> str:
    """Protoc's option that names one of mypy-protobuf's plugins, which write `.pyi` that mypy --strict accepts."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} is missing: install mypy-protobuf")
    return f"--plugin={name}={found}"


def validate_descriptor_set() -> descriptor_pb2.FileDescriptorSet:
    """`buf/validate/validate.proto` and what it imports, out of the protovalidate package."""
    module = importlib.import_module("protovalidate._gen.buf.validate.validate_pb")
    own = descriptor_pb2.FileDescriptorProto.FromString(module.desc().proto.to_binary())
    return with_imports({own.name: own})


def envoy_descriptor_set() -> descriptor_pb2.FileDescriptorSet:
    """Every file descriptor in the xds-protos distribution, read without importing its modules."""
    distribution = importlib.metadata.distribution("xds-protos")
    files: dict[str, descriptor_pb2.FileDescriptorProto] = {}
    for path in distribution.files or ():
        if path.name.endswith("_pb2.py") and path.parts[0] in {"envoy", "xds", "udpa", "validate", "cel", "google"}:
            descriptor = serialized_descriptor(Path(str(distribution.locate_file(path))))
            files[descriptor.name] = descriptor
    return with_imports({name: file for name, file in files.items() if name.startswith("envoy/")}, files)


def serialized_descriptor(stub: Path) -> descriptor_pb2.FileDescriptorProto:
    """The file descriptor that a generated module registers: the literal in its `AddSerializedFile` call."""
    for node in ast.walk(ast.parse(stub.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "AddSerializedFile":
            return descriptor_pb2.FileDescriptorProto.FromString(ast.literal_eval(node.args[0]))
    raise RuntimeError(f"{stub} registers no file descriptor")


def with_imports(
    wanted: dict[str, descriptor_pb2.FileDescriptorProto],
    known: dict[str, descriptor_pb2.FileDescriptorProto] | None = None,
) -> descriptor_pb2.FileDescriptorSet:
    """A set with these files, each behind its imports; what is not `known` is one of protobuf's well-known files."""
    known = {} if known is None else known
    ordered: dict[str, descriptor_pb2.FileDescriptorProto] = {}

    def add(name: str) -> None:
        if name in ordered:
            return
        file = wanted.get(name) or known.get(name) or well_known_descriptor(name)
        for dependency in file.dependency:
            add(dependency)
        ordered[name] = file

    for name in sorted(wanted):
        add(name)
    return descriptor_pb2.FileDescriptorSet(file=ordered.values())


def well_known_descriptor(name: str) -> descriptor_pb2.FileDescriptorProto:
    """The descriptor of a file that the protobuf package itself carries, e.g. `google/protobuf/any.proto`."""
    module = importlib.import_module(name.removesuffix(".proto").replace("/", ".") + "_pb2")
    return descriptor_pb2.FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)


def write(path: Path, content: bytes) -> None:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


if __name__ == "__main__":
    make_stubs(Path(__file__).resolve().parents[2])
