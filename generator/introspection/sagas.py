"""Asks a replica for its sagas: work in several steps, as `nipmesh.operations.v1.SagaService` describes it.

Any service may serve that protobuf service; what it does in its steps is its own matter. The messages are made from the descriptors of
the mesh that runs, so this knows no more fields than they have.
"""

from __future__ import annotations

from typing import Any, Final

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

from generator.introspection.descriptors import cut_down

SERVICE: Final = "nipmesh.operations.v1.SagaService"
METHOD: Final = "ListSagas"
PAGE_SIZE: Final = 500
PAGES_MAX: Final = 20
"""Ten thousand sagas are more than anybody reads; the oldest come first."""
TIMEOUT_S: Final = 5.0
"""For each page: a replica answers from an index within milliseconds."""

Metadata = tuple[tuple[str, str], ...]


class SagasError(Exception):
    """The replica gave no answer; the text says why."""


class SagaReader:
    """Reads sagas with the descriptors of one mesh, which has a service that serves SERVICE."""

    def __init__(self, descriptor_set: bytes) -> None:
        """`descriptor_set` is a serialized FileDescriptorSet. Raises KeyError when nobody serves SERVICE."""
        files = cut_down(descriptor_pb2.FileDescriptorSet.FromString(descriptor_set), {SERVICE: frozenset({METHOD})})
        pool = descriptor_pool.DescriptorPool()
        for file in files.file:
            pool.AddSerializedFile(file.SerializeToString())
        method = pool.FindServiceByName(SERVICE).methods_by_name[METHOD]
        self._request = message_factory.GetMessageClass(method.input_type)
        self._response = message_factory.GetMessageClass(method.output_type)

    def read(self, target: str, metadata: Metadata) -> tuple[list[dict[str, Any]], bool]:
        """The sagas behind a gRPC target as JSON objects, oldest first, and whether there are more. Raises SagasError."""
        found: list[dict[str, Any]] = []
        token = ""
        with grpc.insecure_channel(target) as channel:
            for _ in range(PAGES_MAX):
                page = self._page(channel, metadata, token)
                found.extend(page.get("sagas", []))
                token = page.get("next_page_token", "")
                if not token:
                    break
        return found, bool(token)

    def _page(self, channel: grpc.Channel, metadata: Metadata, token: str) -> dict[str, Any]:
        request = self._request(page_size=PAGE_SIZE, page_token=token)
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE}/{METHOD}")
        try:
            answer = call(request.SerializeToString(), metadata=metadata, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            raise SagasError(f"{error.code().name}: {error.details()}") from error
        return json_format.MessageToDict(self._response.FromString(answer), preserving_proto_field_name=True)
