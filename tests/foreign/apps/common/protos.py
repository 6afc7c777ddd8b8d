"""The carrier's protobufs, compiled when an application starts: nothing generated is kept in the repository."""

from __future__ import annotations

import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (ROOT / "protos", ROOT / "legacy")


def compile_all() -> descriptor_pool.DescriptorPool:
    """Compile every file of both folders into a pool of their own. Raises RuntimeError when protoc refuses one."""
    roots = [*FOLDERS, Path(str(files("grpc_tools") / "_proto"))]
    names = sorted(str(path) for folder in FOLDERS for path in folder.rglob("*.proto"))
    with tempfile.TemporaryDirectory(prefix="courier-") as folder:
        output = Path(folder) / "courier.binpb"
        options = [*(f"-I{root}" for root in roots), "--include_imports", f"--descriptor_set_out={output}"]
        if protoc.main(["protoc", *options, *names]) != 0:
            raise RuntimeError("the protobufs do not compile")
        found = descriptor_pb2.FileDescriptorSet.FromString(output.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in found.file:
        pool.Add(file)
    return pool


POOL = compile_all()


def message(name: str) -> Any:
    """The class of a message by its full name."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(name))


def extension(name: str) -> FieldDescriptor:
    """The handle of an extension field; its message's class is made first, for parsing needs it."""
    field = POOL.FindExtensionByName(name)
    if field.message_type is not None:
        message_factory.GetMessageClass(field.message_type)
    return field


def service(name: str) -> ServiceDescriptor:
    """The descriptor of a service by its full name."""
    return POOL.FindServiceByName(name)


def enum_number(enum: str, value: str) -> int:
    """The number of an enum's value."""
    return int(POOL.FindEnumTypeByName(enum).values_by_name[value].number)


def now(stamp: Message) -> None:
    """Set a timestamp to this moment."""
    stamp.GetCurrentTime()  # type: ignore[attr-defined]
