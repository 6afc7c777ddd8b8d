"""gRPC server reflection, v1 and v1alpha, of a cut-down descriptor set.

The two versions differ in their package name only (github.com/grpc/grpc/blob/master/doc/server-reflection.md), so one
servicer answers both: the messages on the wire are the same bytes, and v1's descriptor is v1alpha's with another name.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import aio

ALPHA_PACKAGE = "grpc.reflection.v1alpha"
STABLE_PACKAGE = "grpc.reflection.v1"
HEALTH_SERVICE = "grpc.health.v1.Health"
ERROR_FILES = (any_pb2, duration_pb2, status_pb2, error_details_pb2)
"""What the details of a rich error status are made of: no method names them, and clients ask for them to print an error."""
REFLECTION_SERVICES = (f"{STABLE_PACKAGE}.ServerReflection", f"{ALPHA_PACKAGE}.ServerReflection")


def reflection_pool(exposed: descriptor_pb2.FileDescriptorSet) -> descriptor_pool.DescriptorPool:
    """Build a private pool: the exposed files, both reflection versions, health, error details. TypeError when broken."""
    pool = descriptor_pool.DescriptorPool()
    alpha = descriptor_pb2.FileDescriptorProto.FromString(reflection_pb2.DESCRIPTOR.serialized_pb)
    health = descriptor_pb2.FileDescriptorProto.FromString(health_pb2.DESCRIPTOR.serialized_pb)
    errors = (descriptor_pb2.FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb) for module in ERROR_FILES)
    ours = {file.name: file for file in (alpha, stable_reflection_file(alpha), health, *errors)}
    _add_all(pool, {**{file.name: file for file in exposed.file}, **ours})
    return pool


def stable_reflection_file(alpha: descriptor_pb2.FileDescriptorProto) -> descriptor_pb2.FileDescriptorProto:
    """Derive `grpc/reflection/v1/reflection.proto` from v1alpha's descriptor by renaming the package."""
    stable = descriptor_pb2.FileDescriptorProto()
    stable.CopyFrom(alpha)
    stable.name, stable.package = "grpc/reflection/v1/reflection.proto", STABLE_PACKAGE
    for message in stable.message_type:
        for field in (field for field in message.field if field.type_name):
            field.type_name = field.type_name.replace(f".{ALPHA_PACKAGE}.", f".{STABLE_PACKAGE}.")
    for method in stable.service[0].method:
        method.input_type = method.input_type.replace(f".{ALPHA_PACKAGE}.", f".{STABLE_PACKAGE}.")
        method.output_type = method.output_type.replace(f".{ALPHA_PACKAGE}.", f".{STABLE_PACKAGE}.")
    return stable


def reflection_servicer(exposed: descriptor_pb2.FileDescriptorSet) -> aio.ReflectionServicer:
    """Answer for the services of `exposed` and for those that describe it."""
    names = [f"{file.package}.{service.name}".lstrip(".") for file in exposed.file for service in file.service]
    return aio.ReflectionServicer([*names, HEALTH_SERVICE, *REFLECTION_SERVICES], reflection_pool(exposed))


def add_reflection(server: grpc.aio.Server, current: Callable[[], aio.ReflectionServicer]) -> None:
    """Answer both versions of reflection on this server; each stream asks `current` for what is exposed when it begins."""

    async def info(requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        answers: Any = current().ServerReflectionInfo(requests, context)  # the stubs take it for a coroutine
        async for answer in answers:
            yield answer

    handler: Any = grpc.stream_stream_rpc_method_handler(
        info,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for service in REFLECTION_SERVICES:
        generic = grpc.method_handlers_generic_handler(service, {"ServerReflectionInfo": handler})
        server.add_generic_rpc_handlers((generic,))


def _add_all(pool: descriptor_pool.DescriptorPool, files: dict[str, descriptor_pb2.FileDescriptorProto]) -> None:
    """Add each file behind its imports."""
    added: set[str] = set()

    def add(name: str) -> None:
        if name in added:
            return
        added.add(name)
        for dependency in files[name].dependency:
            add(dependency)
        pool.Add(files[name])

    for name in sorted(files):
        add(name)
