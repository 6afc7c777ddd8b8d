"""A small gRPC service, compiled once per session, on the real chassis."""

from __future__ import annotations

import asyncio
import importlib
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc.aio
import pytest
from google.protobuf import descriptor_pb2
from grpc_tools import protoc

from buf.validate import validate_pb2
from services.chassis import (
    SERVICE,
    Access,
    Application,
    ChassisSettings,
    Reason,
    ServiceDefinition,
    ServiceError,
    current_caller,
    remaining_s,
)

PREFIX = "/chassistest.v1.EchoService/"
ACCESS = {
    PREFIX + "Echo": Access.PUBLIC,
    PREFIX + "Count": Access.USER | SERVICE("payment"),
    PREFIX + "Collect": Access.PUBLIC,
    PREFIX + "Chat": Access.PUBLIC,
    PREFIX + "Operate": Access.OPERATOR,
    PREFIX + "Internal": SERVICE("payment"),
}


def compile_echo(folder: Path) -> None:
    """Compile echo.proto into `folder`."""
    validate = descriptor_pb2.FileDescriptorSet()
    pending = [validate_pb2.DESCRIPTOR]
    while pending:
        file = pending.pop()
        file.CopyToProto(validate.file.add())
        pending.extend(file.dependencies)
    (folder / "validate.binpb").write_bytes(validate.SerializeToString())
    here = Path(__file__).parent
    arguments = [
        "protoc",
        f"--descriptor_set_in={folder}/validate.binpb",
        f"-I{here}",
        f"--python_out={folder}",
        f"--grpc_python_out={folder}",
        "echo.proto",
    ]
    assert protoc.main(arguments) == 0


@pytest.fixture(scope="session")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The compiled modules: `pb2` and `grpc`."""
    folder = tmp_path_factory.mktemp("echo")
    compile_echo(folder)
    sys.path.insert(0, str(folder))
    yield SimpleNamespace(pb2=importlib.import_module("echo_pb2"), grpc=importlib.import_module("echo_pb2_grpc"))
    sys.path.remove(str(folder))


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder with a short name, for sockets."""
    with tempfile.TemporaryDirectory(prefix="nmt") as folder:
        yield Path(folder)


async def act(echo: SimpleNamespace, app: Application[ChassisSettings], log: list[str], request: Any) -> None:
    """What the request's mode orders, before the answer."""
    if request.mode == "crash":
        raise ValueError("secret inside: nsec1abc")
    if request.mode == "error":
        raise ServiceError(Reason.INVOICE_NOT_FOUND, "no such invoice", metadata={"invoice": "7"})
    if request.mode == "dependency":
        async with grpc.aio.insecure_channel("127.0.0.1:1") as nowhere:
            await nowhere.unary_unary("/elsewhere.Service/Method")(b"")
    if request.mode == "stray":
        task = asyncio.create_task(asyncio.sleep(10))
        asyncio.get_running_loop().call_soon(task.cancel)
        await task
    if request.mode == "sleep":
        try:
            await asyncio.sleep(request.sleep_ms / 1000)
        except asyncio.CancelledError:
            log.append("cancelled")
            raise
        log.append("slept")
    if request.mode == "call":
        await echo.grpc.EchoServiceStub(app.channel).Echo(echo.pb2.EchoRequest(text="x", mode="crash"))


def make_servicer(echo: SimpleNamespace, app: Application[ChassisSettings], log: list[str]) -> Any:  # noqa: C901  # one branch per behaviour
    """A servicer whose behaviour the request's mode chooses."""

    class Servicer(echo.grpc.EchoServiceServicer):
        async def Echo(self, request: Any, context: Any) -> Any:
            log.append(f"echo {request.mode}")
            await act(echo, app, log, request)
            caller = current_caller()
            left = remaining_s()
            return echo.pb2.EchoResponse(
                text=request.text, peer=caller.peer, subject=caller.subject, remaining_s=-1 if left is None else left
            )

        async def Count(self, request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                if request.mode == "fail_first":
                    raise ServiceError(Reason.ACCOUNT_FROZEN, "frozen")
                for number in range(3):
                    yield echo.pb2.EchoResponse(text=str(number))
                if request.mode == "fail_later":
                    raise ValueError("boom secret")
                while request.mode == "flood":
                    yield echo.pb2.EchoResponse(text="x" * 100_000)
                if request.mode == "watch":
                    await app.draining.wait()
                    app.draining.check()
            finally:
                log.append("count closed")

        async def Collect(self, requests: Any, context: Any) -> Any:
            return echo.pb2.EchoResponse(text="".join([request.text async for request in requests]))

        async def Chat(self, requests: Any, context: Any) -> AsyncIterator[Any]:
            async for request in requests:
                yield echo.pb2.EchoResponse(text=request.text)

        async def Operate(self, request: Any, context: Any) -> Any:
            return echo.pb2.EchoResponse(text=request.text)

        async def Internal(self, request: Any, context: Any) -> Any:
            return echo.pb2.EchoResponse(text=request.text, peer=current_caller().service)

    return Servicer()


@pytest.fixture
def calls() -> list[str]:
    """What the servicer saw."""
    return []


@pytest.fixture
def definition(echo: SimpleNamespace, calls: list[str]) -> ServiceDefinition[ChassisSettings]:
    """The echo service."""
    return make_definition(echo, calls)


def make_definition(
    echo: SimpleNamespace, calls: list[str], prepare: Callable[[Application[ChassisSettings]], None] = lambda _: None
) -> ServiceDefinition[ChassisSettings]:
    """The echo service, with something more to do at its start."""

    @asynccontextmanager
    async def lifespan(app: Application[ChassisSettings]) -> AsyncIterator[None]:
        servicer = make_servicer(echo, app, calls)
        app.add(
            echo.grpc.add_EchoServiceServicer_to_server, servicer, echo.pb2.DESCRIPTOR.services_by_name["EchoService"]
        )
        prepare(app)
        yield
        calls.append("lifespan over")

    return ServiceDefinition(settings=ChassisSettings, access=ACCESS, lifespan=lifespan)
