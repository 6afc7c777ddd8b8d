"""Asks a replica about its service's events, as `nipmesh.operations.v1.EventService` describes it, and has something done to them.

Any service may serve it on its own socket. The messages are made from the descriptors of the mesh that runs, so this knows no more fields
than they have.
"""

from __future__ import annotations

from typing import Any, Final

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

from generator.introspection.descriptors import cut_down

SERVICE: Final = "nipmesh.operations.v1.EventService"
TIMEOUT_S: Final = 10.0
"""A replica answers from its database within milliseconds; asking the bus what waits for each consumer takes a little more."""

Metadata = tuple[tuple[str, str], ...]


class EventsCallError(Exception):
    """The replica gave no answer; the text says why. `is_foreign`: its service knows nothing of EventService."""

    def __init__(self, message: str, *, is_foreign: bool = False) -> None:
        super().__init__(message)
        self.is_foreign = is_foreign


class EventCaller:
    """Calls EventService with the descriptors of one mesh."""

    def __init__(self, descriptor_set: bytes) -> None:
        """`descriptor_set` is a serialized FileDescriptorSet. Raises KeyError when it has no EventService."""
        whole = descriptor_pb2.FileDescriptorSet.FromString(descriptor_set)
        names = [
            method.name
            for file in whole.file
            for service in file.service
            for method in service.method
            if f"{file.package}.{service.name}" == SERVICE
        ]
        pool = descriptor_pool.DescriptorPool()
        for file in cut_down(whole, {SERVICE: frozenset(names)}).file:
            pool.AddSerializedFile(file.SerializeToString())
        self._methods = pool.FindServiceByName(SERVICE).methods_by_name

    def call(self, target: str, metadata: Metadata, method: str, **request: Any) -> dict[str, Any]:
        """Call a method of the replica behind a gRPC target, JSON objects in and out. Raises EventsCallError."""
        described = self._methods[method]
        message = json_format.ParseDict(request, message_factory.GetMessageClass(described.input_type)())
        with grpc.insecure_channel(target) as channel:
            ask: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE}/{method}")
            try:
                answer = ask(message.SerializeToString(), metadata=metadata, timeout=TIMEOUT_S)
            except grpc.RpcError as error:
                is_foreign = error.code() is grpc.StatusCode.UNIMPLEMENTED
                raise EventsCallError(f"{error.code().name}: {error.details()}", is_foreign=is_foreign) from error
        response = message_factory.GetMessageClass(described.output_type).FromString(answer)
        return json_format.MessageToDict(
            response, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
