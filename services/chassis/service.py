"""What a service is made of: a definition (settings, who may call what, how it comes to life) and the running application.

    @asynccontextmanager
    async def nip(app: Application[NipSettings]) -> AsyncIterator[None]:
        async with await Database.open(app.settings.data_directory / "nip.db", migrations=MIGRATIONS) as database:
            app.add(add_NipServiceServicer_to_server, NipServicer(database), DESCRIPTOR.services_by_name["NipService"])
            app.spawn(run_sweeper(database), name="sweeper")

Yield:
    SERVICE = ServiceDefinition(settings=NipSettings, access={"/nipmesh.nip.v1.NipService/GetKey": Access.USER, ...}, lifespan=nip)

    if __name__ == "__main__":
        run(SERVICE)

What stands before `yield` runs before the server listens, what stands after it once all calls and background tasks have ended.

"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry

from services.chassis import client
from services.chassis.caller import OUTSIDE, Access, set_current_call
from services.chassis.draining import Draining
from services.chassis.logs import get_logger
from services.chassis.settings import ChassisSettings

SettingsT = TypeVar("SettingsT", bound=ChassisSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """One gRPC service of the process."""

    register: Callable[[Any, grpc.aio.Server], None]
    servicer: Any
    descriptor: ServiceDescriptor

    @property
    def methods(self) -> tuple[str, ...]:
        """Full names, "/package.Service/Method"."""
        return tuple(f"/{self.descriptor.full_name}/{method.name}" for method in self.descriptor.methods)


@dataclass(slots=True, kw_only=True)
class Application(Generic[SettingsT]):
    """A service while it runs. Its servicers and background tasks get what they need from here."""

    settings: SettingsT
    draining: Draining = field(default_factory=Draining)
    registry: CollectorRegistry
    tracer_provider: TracerProvider
    registrations: list[Registration] = field(default_factory=list)
    failed: asyncio.Event = field(default_factory=asyncio.Event)
    conditions: dict[str, Callable[[], bool]] = field(default_factory=dict)
    """What the health service tells besides the services, by name: something that the service can do without for a while."""
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    _channel: grpc.aio.Channel | None = None

    def add(
        self, register: Callable[[Any, grpc.aio.Server], None], servicer: Any, descriptor: ServiceDescriptor
    ) -> None:  # servicers share no base
        """Serve `servicer`: `register` is the generated add_…Servicer_to_server, `descriptor` the service's."""
        self.registrations.append(Registration(register=register, servicer=servicer, descriptor=descriptor))

    def spawn(self, work: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Run a background task that belongs to no call: it keeps the trace, but not the caller and deadline of a call.

        After the grace of a drain it is cancelled and waited for. One that raises ends the process (exit code 1): let it handle what it
        expects.
        """
        context = contextvars.copy_context()
        context.run(set_current_call, OUTSIDE)
        task = asyncio.create_task(work, name=name, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel to the own sidecar, opened at first use and closed with the application."""
        if self._channel is None:
            self._channel = client.channel(self.settings, tracer_provider=self.tracer_provider)
        return self._channel

    async def end_tasks(self) -> None:
        """Cancel the background tasks and wait until they have ended."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def close_channel(self) -> None:
        """Close the channel, if it was used."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    def _ended(self, task: asyncio.Task[Any]) -> None:
        """A background task is over: that it failed is a fault that ends the process."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            get_logger("chassis").error(
                "background task failed", task=task.get_name(), exc_info=(type(error), error, error.__traceback__)
            )
            self.failed.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceDefinition(Generic[SettingsT]):
    """A service: see the module. `access` names every method of every service that `lifespan` adds, or the start fails."""

    settings: type[SettingsT]
    access: Mapping[str, Access]
    lifespan: Callable[[Application[SettingsT]], AbstractAsyncContextManager[None]]
