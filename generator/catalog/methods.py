"""From a FileDescriptorSet to the methods of every protobuf service in it."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf import descriptor_pb2

from generator.model import Idempotency, Method, StreamingKind

_STREAMING = {
    (False, False): StreamingKind.UNARY,
    (True, False): StreamingKind.CLIENT,
    (False, True): StreamingKind.SERVER,
    (True, True): StreamingKind.BIDIRECTIONAL,
}


def services_of(descriptors: bytes) -> Mapping[str, tuple[Method, ...]]:
    """Full service name to its methods by name, both sorted. Raises protobuf's DecodeError for other bytes."""
    files = descriptor_pb2.FileDescriptorSet.FromString(descriptors).file
    found: dict[str, tuple[Method, ...]] = {}
    for file in files:
        for service in file.service:
            name = f"{file.package}.{service.name}" if file.package else service.name
            methods = (_method(name, method) for method in service.method)
            found[name] = tuple(sorted(methods, key=lambda method: method.name))
    return dict(sorted(found.items()))


def _method(service: str, method: descriptor_pb2.MethodDescriptorProto) -> Method:
    level = method.options.idempotency_level
    return Method(
        service=service,
        name=method.name,
        streaming=_STREAMING[method.client_streaming, method.server_streaming],
        idempotency=Idempotency(descriptor_pb2.MethodOptions.IdempotencyLevel.Name(level)),
        request=method.input_type.removeprefix("."),
        response=method.output_type.removeprefix("."),
    )
