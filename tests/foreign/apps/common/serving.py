"""A gRPC server on the environment that the mesh gives: where to listen, where to call, when to end."""

from __future__ import annotations

import asyncio
import keyword
import os
import signal
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
import grpc.aio
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from common.behaviour import FORWARDED, Conduct
from common.protos import service

Context = grpc.aio.ServicerContext[Any, Any]


class Call:
    """One incoming call: its deadline, its conduct, and the way to call others for it."""

    def __init__(self, path: str, context: Context, egress: grpc.aio.Channel) -> None:
        self.context, self._egress = context, egress
        self.metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        self.conduct = Conduct(path, self.metadata)

    async def refuse(self, code: grpc.StatusCode, details: str) -> None:
        """End the call with an error."""
        await self.context.abort(code, details)

    def ask(self, path: str, request: Any) -> Any:
        """Call a method of another service with what is left of the deadline; `request` is a message or an iterator."""
        method = method_of(path)
        serialize, parse = coders(method)
        kinds = {
            (False, False): self._egress.unary_unary,
            (False, True): self._egress.unary_stream,
            (True, False): self._egress.stream_unary,
            (True, True): self._egress.stream_stream,
        }
        make = kinds[method.client_streaming, method.server_streaming]
        stub: Any = make(path, request_serializer=serialize, response_deserializer=parse)
        metadata = [(key, self.metadata[key]) for key in FORWARDED if key in self.metadata]
        return stub(request, metadata=metadata, timeout=self.context.time_remaining())


def method_of(path: str) -> MethodDescriptor:
    """The descriptor behind `/package.Service/Method`."""
    _, name, method = path.split("/")
    return service(name).methods_by_name[method]


def coders(method: MethodDescriptor) -> tuple[Any, Any]:
    """How a client serializes requests and parses responses."""
    return serialized, message_factory.GetMessageClass(method.output_type).FromString


def serialized(message: Message) -> bytes:
    """The bytes of a message."""
    return message.SerializeToString()


def attribute(method: str) -> str:
    """The Python name of a method: `return` is `return_`."""
    return f"{method}_" if keyword.iskeyword(method) else method


class _Server:
    """The handlers of one application."""

    def __init__(self, servicers: Mapping[str, object], egress: grpc.aio.Channel) -> None:
        self.servicers, self.egress = servicers, egress

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """One generic handler for each protobuf service."""
        return [
            grpc.method_handlers_generic_handler(
                name, {method.name: self.handler(servicer, name, method) for method in service(name).methods}
            )
            for name, servicer in self.servicers.items()
        ]

    def handler(self, servicer: object, name: str, method: MethodDescriptor) -> grpc.RpcMethodHandler[Any, Any]:
        """The handler of one method, by its streaming kind."""
        work = getattr(servicer, attribute(method.name))
        answer = self._stream if method.server_streaming else self._single
        kinds = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }
        return kinds[method.client_streaming, method.server_streaming](
            answer(work, f"/{name}/{method.name}"),
            request_deserializer=message_factory.GetMessageClass(method.input_type).FromString,
            response_serializer=serialized,
        )

    def _single(self, work: Any, path: str) -> Any:
        async def answer(request: Any, context: Context) -> Any:
            call = await self._begin(path, context)
            try:
                response = await work(request, call)
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details() or "")
            call.conduct.done()
            await call.conduct.moment("after", context)
            return response

        return answer

    def _stream(self, work: Any, path: str) -> Any:
        async def answer(request: Any, context: Context) -> AsyncIterator[Any]:
            call, count = await self._begin(path, context), 0
            try:
                async for response in work(request, call):
                    yield response
                    count += 1
                    if count == 1:
                        await call.conduct.moment("after", context)
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details() or "")
            call.conduct.done()

        return answer

    async def _begin(self, path: str, context: Context) -> Call:
        call = Call(path, context, self.egress)
        call.conduct.begin(context.time_remaining())
        await call.conduct.moment("before", context)
        await call.conduct.moment("headers", context)
        return call


def serve(servicers: Mapping[str, object], *, listen: str | None = None) -> None:
    """Serve until SIGTERM. `servicers`: full name of each protobuf service to what implements it."""
    asyncio.run(_serve(servicers, listen or os.environ["NIPMESH_LISTEN"]))


async def _serve(servicers: Mapping[str, object], listen: str) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    authority = ("grpc.default_authority", os.environ["NIPMESH_AUTHORITY"])
    async with grpc.aio.insecure_channel(os.environ["NIPMESH_EGRESS"], options=[authority]) as egress:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers(tuple(_Server(servicers, egress).handlers()))
        healthy = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
        server.add_insecure_port(listen)
        await server.start()
        for name in ("", *servicers):
            await healthy.set(name, health_pb2.HealthCheckResponse.SERVING)
        print(f"serving {', '.join(servicers)} on {listen}", flush=True)
        await stop.wait()
        await healthy.enter_graceful_shutdown()
        await server.stop(float(os.environ.get("NIPMESH_DRAIN_GRACE", "10")))
