"""Fields of request messages that Envoy can read out of a call (`grpc_field_extraction`)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from generator.model import Method, StreamingKind

EXTRACTABLE = frozenset(
    {
        FieldDescriptor.TYPE_STRING,
        FieldDescriptor.TYPE_UINT32,
        FieldDescriptor.TYPE_UINT64,
        FieldDescriptor.TYPE_INT32,
        FieldDescriptor.TYPE_INT64,
        FieldDescriptor.TYPE_SINT32,
        FieldDescriptor.TYPE_SINT64,
        FieldDescriptor.TYPE_FIXED32,
        FieldDescriptor.TYPE_FIXED64,
        FieldDescriptor.TYPE_SFIXED32,
        FieldDescriptor.TYPE_SFIXED64,
        FieldDescriptor.TYPE_FLOAT,
        FieldDescriptor.TYPE_DOUBLE,
    }
)
"""Types that Envoy extracts (envoy.extensions.filters.http.grpc_field_extraction.v3)."""


def has_hashable_field(descriptor_set: bytes, path: str, methods: Iterable[Method]) -> tuple[Method, ...]:
    """The methods of which the sidecar sees one request, and whose request has this scalar field."""
    pool = _pool(descriptor_set)
    seen_whole = {StreamingKind.UNARY, StreamingKind.SERVER}
    return tuple(
        method
        for method in methods
        if method.streaming in seen_whole and _is_scalar(pool.FindMessageTypeByName(method.request), path.split("."))
    )


def _is_scalar(message: Descriptor, names: list[str]) -> bool:
    field = message.fields_by_name.get(names[0])
    if field is None or field.is_repeated:
        return False
    if len(names) == 1:
        return field.type in EXTRACTABLE
    return field.message_type is not None and _is_scalar(field.message_type, names[1:])


def files_of(descriptor_set: bytes, services: Iterable[str]) -> bytes:
    """The part of a FileDescriptorSet that these protobuf services need, in its order."""
    files = {file.name: file for file in descriptor_pb2.FileDescriptorSet.FromString(descriptor_set).file}
    wanted, defined = set(services), _definers(files.values())
    waiting, needed = sorted({defined[name] for name in wanted}), set[str]()
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += files[name].dependency
    part = descriptor_pb2.FileDescriptorSet(file=[file for name, file in files.items() if name in needed])
    return part.SerializeToString(deterministic=True)


def _definers(files: Iterable[descriptor_pb2.FileDescriptorProto]) -> dict[str, str]:
    return {
        f"{file.package}.{service.name}" if file.package else service.name: file.name
        for file in files
        for service in file.service
    }


@lru_cache(maxsize=4)
def _pool(descriptor_set: bytes) -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(descriptor_set).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool
