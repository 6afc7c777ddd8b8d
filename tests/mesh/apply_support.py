"""A mesh whose manifest changes all the time, the changes, and a load that notices when one of them costs a call."""

import asyncio
import datetime as dt
import json
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

import grpc
import grpc.aio
from google.protobuf.wrappers_pb2 import StringValue

from generator.outputs.local.client import ControlError, call
from generator.pki import TokenClaims, TokenKey
from mesh.runner_support import HERE, RELAY, EchoMesh, until

ONCE = "/echo.v1.EchoService/Once"
SPARE = "/echo.v1.EchoService/Spare"
LATER = "/echo.v1.EchoService/Later"
EXTRA = "/extra.v1.ExtraService/Say"
COUNT = "/echo.v1.EchoService/Count"
PAUSE_S = 0.03
"""Between two calls of one caller: the load is there to notice, not to weigh."""
ECHO = """
syntax = "proto3";
package echo.v1;
import "google/protobuf/wrappers.proto";
service EchoService {{
  rpc Say(google.protobuf.StringValue) returns (google.protobuf.StringValue) {{
    option idempotency_level = NO_SIDE_EFFECTS;
  }}
  rpc Once(google.protobuf.StringValue) returns (google.protobuf.StringValue);
  rpc Spare(google.protobuf.StringValue) returns (google.protobuf.StringValue);
  rpc Count(google.protobuf.StringValue) returns (stream google.protobuf.StringValue) {{
    option idempotency_level = NO_SIDE_EFFECTS;
  }}
{later}}}
"""
ONE_METHOD = """
syntax = "proto3";
package {name}.v1;
import "google/protobuf/wrappers.proto";
service {title}Service {{
  rpc {method}(google.protobuf.StringValue) returns (google.protobuf.StringValue) {{
    option idempotency_level = NO_SIDE_EFFECTS;
  }}
}}
"""
LATER_RPC = "  rpc Later(google.protobuf.StringValue) returns (google.protobuf.StringValue);\n"


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the manifest and the protos are to say."""

    echo_replicas: int = 2
    front_replicas: int = 1
    deadline: str = "5s"
    idle_timeout: str = "5m"
    front_env: str = "a"
    echo_env: str = "a"
    front_once: bool = False
    """front may call Once."""
    is_spare_exposed: bool = True
    spare: str = "token"
    """Who may call Spare: `token`, `public`, `operator`."""
    extra_replicas: int = 0
    later: bool = False
    """The proto has a method more, and the gateway exposes it."""
    reflection: bool = True
    front_calls_extra: bool = False

    def text(self, port: int) -> str:
        """Write the manifest."""
        lines = [
            "mesh: parlour",
            "trust_domain: parlour.mesh",
            "protos: [protos]",
            "services:",
            *self._service("echo", self.echo_replicas, {"ECHO": self.echo_env}),
            f"    traffic: {{deadline: {self.deadline}, methods: {{EchoService/Count: {{idle_timeout: {self.idle_timeout}}}}}}}",
            *self._service("front", self.front_replicas, {"FRONT": self.front_env}),
            "    calls:",
            f"      echo: [EchoService/Say{', EchoService/Once' if self.front_once else ''}]",
            *(["      extra: [ExtraService/Say]"] if self.front_calls_extra and self.extra_replicas else []),
            *(self._service("extra", self.extra_replicas, {"EXTRA": "1"}) if self.extra_replicas else []),
            "gateway:",
            f"  listen: 127.0.0.1:{port}",
            f"  reflection: {str(self.reflection).lower()}",
            "  authentication:",
            "    issuer: echo",
            f"    public: [EchoService/Once{', EchoService/Spare' if self._is('public') else ''}]",
            *(["    roles: {operator: [EchoService/Spare]}"] if self._is("operator") else []),
            "  expose:",
            f"    echo: [{', '.join(self._exposed())}]",
            "    front: [FrontService/*]",
            *(["    extra: [ExtraService/*]"] if self.extra_replicas else []),
        ]
        return "\n".join(lines) + "\n"

    def _service(self, name: str, replicas: int, env: dict[str, str]) -> list[str]:
        return [
            f"  {name}:",
            f"    run: python {HERE / 'echo_app.py'}",
            f"    serves: [{name}.v1.{name.title()}Service]",
            f"    replicas: {replicas}",
            f"    env: {json.dumps(env)}",
        ]

    def _exposed(self) -> Iterator[str]:
        yield from (f"EchoService/{name}" for name in ("Say", "Once", "Count"))
        if self.is_spare_exposed:
            yield "EchoService/Spare"
        if self.later:
            yield "EchoService/Later"

    def _is(self, word: str) -> bool:
        return self.is_spare_exposed and self.spare == word


@dataclass(kw_only=True)
class ChangingMesh(EchoMesh):
    """The mesh, and what its manifest says now."""

    wish: Wish = field(default_factory=Wish)

    def write(self) -> None:
        """Write manifest and protos."""
        extra = {"front": ("Front", "Relay"), "extra": ("Extra", "Say"), "broken": ("Broken", "Say")}
        texts = {name: ONE_METHOD.format(name=name, title=title, method=rpc) for name, (title, rpc) in extra.items()}
        texts["echo"] = ECHO.format(later=LATER_RPC if self.wish.later else "")
        for name, text in texts.items():
            path = self.folder / "protos" / name / "v1" / f"{name}.proto"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.manifest.write_text(self.wish.text(self.port))

    @property
    def manifest(self) -> Path:
        """Where it stands."""
        return self.folder / "mesh.yaml"

    async def ask(self, command: str) -> dict[str, Any]:
        """Ask the supervisor, without a process of one's own."""
        return dict(await asyncio.to_thread(call, self.manifest, {"command": command}))

    async def apply(self) -> tuple[str, list[str]]:
        """Apply what is written; the result and the plan's lines. Raises ControlError."""
        events: list[dict[str, Any]] = []
        result = await asyncio.to_thread(lambda: call(self.manifest, {"command": "apply"}, on_event=events.append))
        return str(result), [event["text"] for event in events if event["kind"] == "plan"]

    async def become(self, wish: Wish) -> list[str]:
        """Write a wish and apply it; the plan's lines."""
        self.wish = wish
        self.write()
        result, plan = await self.apply()
        assert result.startswith("applied in "), result
        assert "not running" not in result
        return plan

    async def refused(self, text: str) -> str:
        """Apply a manifest that is to be refused, take it back, and give the words of the refusal."""
        self.manifest.write_text(text)
        try:
            result, _ = await self.apply()
        except ControlError as error:
            return str(error)
        finally:
            self.write()
        raise AssertionError(f"{result}: it was not refused")

    def token(self, role: str | None = None) -> tuple[tuple[str, str], ...]:
        """Mint a token, as metadata."""
        claims = TokenClaims(
            subject="aa" * 32,
            issuer="spiffe://parlour.mesh/service/echo",
            audience="parlour",
            lifetime=dt.timedelta(minutes=15),
            role=role,
        )
        key = TokenKey.open(self.folder / ".nipmesh" / "pki" / "token" / "token.key")
        return (("authorization", f"Bearer {key.mint(claims, dt.datetime.now(dt.UTC))}"),)


def running_state(document: dict[str, Any]) -> dict[str, Any]:
    """Take from a status document what a refused change must leave as it was: processes and versions."""
    entries = [replica for service in document["services"].values() for replica in service["replicas"]]
    state = {
        entry.get("name", "gateway"): (entry["pid"], entry["sidecar_pid"], entry["configuration"]["version"])
        for entry in (*entries, document["gateway"])
    }
    return state | {"state": document["state"]}


def are_current(document: dict[str, Any]) -> bool:
    """Tell whether every sidecar runs what was published for it."""
    entries = [replica for service in document["services"].values() for replica in service["replicas"]]
    return all(entry["configuration"]["state"] == "current" for entry in (*entries, document["gateway"]))


async def code_of(channel: grpc.aio.Channel, path: str, text: str = "hi", metadata: Any = ()) -> str:
    """Make one call and give its code."""
    unary: Any = channel.unary_unary(path, StringValue.SerializeToString, StringValue.FromString)
    try:
        await unary(StringValue(value=text), timeout=5, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


@dataclass(kw_only=True)
class Watch:
    """Calls and streams on and on; everything that fails is noted."""

    mesh: ChangingMesh
    answered: int = 0
    messages: int = 0
    ended: int = 0
    """Streams that their replica ended in good order, when it was to stop."""
    failed: list[str] = field(default_factory=list)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: list["asyncio.Task[None]"] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        work = [
            self._call(RELAY),
            self._call(RELAY),
            self._call(ONCE),
            self._call(ONCE),
            self._stream(),
            self._stream(),
        ]
        self._tasks = [asyncio.create_task(one) for one in work]
        while not (self.answered and self.messages):
            await asyncio.sleep(PAUSE_S)
            assert not self.failed, self.failed
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def _call(self, path: str) -> None:
        metadata = self.mesh.token()
        async with self.mesh.channel() as channel:
            unary: Any = channel.unary_unary(path, StringValue.SerializeToString, StringValue.FromString)
            while not self._stop.is_set():
                try:
                    await unary(StringValue(value="load"), timeout=10, metadata=metadata)
                    self.answered += 1
                except grpc.aio.AioRpcError as error:
                    self._note(path, error)
                await asyncio.sleep(PAUSE_S)

    async def _stream(self) -> None:
        metadata = self.mesh.token()
        async with self.mesh.channel() as channel:
            stream: Any = channel.unary_stream(COUNT, StringValue.SerializeToString, StringValue.FromString)
            while not self._stop.is_set():
                answers = stream(StringValue(value="100000"), metadata=metadata)
                try:
                    async for _ in answers:
                        self.messages += 1
                        if self._stop.is_set():
                            answers.cancel()
                            return
                    self.ended += 1
                except grpc.aio.AioRpcError as error:
                    self._note(COUNT, error)
                    await asyncio.sleep(PAUSE_S)

    def _note(self, path: str, error: grpc.aio.AioRpcError) -> None:
        self.failed.append(f"{time.strftime('%H:%M:%S')} {path} {error.code().name}: {error.details()}")


FAULTY = """
    import sys
    from dataclasses import replace
    from generator.cli.main import main
    from generator.outputs.local import rotation
    from generator.resources import make_resource

    render = rotation.render

    def with_a_fault(*arguments, **options):
        rendered = render(*arguments, **options)
        return replace(rendered, workloads=tuple(map(spoiled, rendered.workloads)))

    def spoiled(workload):
        return replace(workload, routes=tuple(map(spoiled_route, workload.routes)))

    def spoiled_route(route):
        if "7.777s" not in route.text and "3.333s" not in route.text:
            return route
        return make_resource(route.type, route.body | {"virtual_hosts": 2 * route.body["virtual_hosts"]})

    rotation.render = with_a_fault
    main(["--file", sys.argv[1], "up"], prog_name="nipmesh")
"""
"""`nipmesh up` that publishes, for two deadlines, other routes than it has checked: ones that no Envoy takes."""


def start(mesh: ChangingMesh, command: list[str], output: int | IO[bytes] = subprocess.PIPE) -> "subprocess.Popen[str]":
    """Start a command beside the test."""
    errors = subprocess.PIPE if output == subprocess.PIPE else subprocess.STDOUT
    return subprocess.Popen(command, stdout=output, stderr=errors, text=True, env=mesh.environment)


@asynccontextmanager
async def faulty_mesh(mesh: ChangingMesh) -> AsyncIterator[None]:
    """Run a mesh that publishes something that a running Envoy refuses, on request, and end it."""
    command = [sys.executable, "-c", textwrap.dedent(FAULTY), str(mesh.manifest)]
    with (mesh.folder / "up.log").open("wb") as log:
        process = start(mesh, command, log)
        try:
            await until(lambda: mesh.run("status", expect=None).returncode == 0, timeout_s=60)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(process.wait, 30)
