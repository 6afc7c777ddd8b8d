"""One call is one trace, from the gateway through every sidecar and application; metrics count it; logs name it."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from concurrent import futures

import grpc
import grpc.aio
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from support.mesh import REPOSITORY, RunningMesh
from support.nostr import User
from support.wallet import Wallet

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(120)]

EXPORT_SECONDS_MAX = 30
"""Exporters send in batches, every five seconds."""


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP receiver that remembers which services took part in each trace."""

    def __init__(self) -> None:
        self.services: defaultdict[bytes, set[str]] = defaultdict(set)
        self.names: defaultdict[bytes, set[str]] = defaultdict(set)

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            attributes = {item.key: item.value.string_value for item in resource.resource.attributes}
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.services[span.trace_id].add(attributes["service.name"])
                    self.names[span.trace_id].add(span.name)
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture(scope="module")
def collector() -> Iterator[tuple[Collector, int]]:
    """The collector and its port."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    collected = Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collected, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield collected, port
    server.stop(0).wait()


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, collector: tuple[Collector, int]) -> Iterator[RunningMesh]:
    """The repository's mesh with one replica of each service, which exports its traces."""
    text = (REPOSITORY / "mesh.yaml").read_text().replace("replicas: 2", "replicas: 1")
    running = RunningMesh(tmp_path_factory.mktemp("traced"), f"{text}\ntelemetry: {{otlp: 127.0.0.1:{collector[1]}}}\n")
    running.up()
    yield running
    running.down()


@pytest.fixture
async def wallet(traced: RunningMesh) -> AsyncIterator[Wallet]:
    """A user of the traced mesh."""
    user = User()
    async with traced.channel() as channel:
        await user.login(channel, f"http://{traced.gateway}")
        yield Wallet(channel, user)


async def test_one_call_is_one_trace(wallet: Wallet, traced: RunningMesh, collector: tuple[Collector, int]) -> None:
    await wallet.invoice(await wallet.open_account(), 1_000)
    wanted = {"gateway", "invoice", "payment"}
    for _ in range(EXPORT_SECONDS_MAX * 10):
        complete = [trace for trace, services in collector[0].services.items() if wanted <= services]
        if complete:
            break
        await asyncio.sleep(0.1)
    else:
        raise AssertionError(f"no trace has all of {wanted}: {list(collector[0].services.values())}")
    trace_id = complete[0].hex()
    assert any("GetAccount" in name for name in collector[0].names[complete[0]])
    for log in ("gateway-sidecar.log", "invoice-0-sidecar.log", "invoice-0-app.log", "payment-0-app.log"):
        await _named_in(traced, log, trace_id)


async def _named_in(mesh: RunningMesh, log: str, trace_id: str) -> None:
    """Wait until a log names the trace: Envoy writes its access log once a second."""
    for _ in range(30):
        if trace_id in mesh.logs(log):
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{log} does not name the trace")


async def test_each_sidecar_serves_both_kinds_of_metrics(wallet: Wallet, traced: RunningMesh) -> None:
    await wallet.open_account()
    scrape = traced.replicas("payment")[0]["scrape"]
    application = await asyncio.to_thread(_get, f"http://{scrape}/metrics/app")
    sidecar = await asyncio.to_thread(_get, f"http://{scrape}/metrics/envoy")
    assert "CreateAccount" in application
    assert 'grpc_service="nipmesh.payment.v1.AccountService"' in sidecar
    assert 'grpc_method="CreateAccount"' in sidecar
    for method, path in (("POST", "/metrics/app"), ("GET", "/"), ("GET", "/quitquitquit"), ("GET", "/config_dump")):
        request = urllib.request.Request(f"http://{scrape}{path}", method=method)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            await asyncio.to_thread(urllib.request.urlopen, request, timeout=5)


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310  (the URL is the mesh's own)
        return str(response.read().decode())


def test_prometheus_finds_every_target(traced: RunningMesh) -> None:
    (file,) = (traced.directory / ".nipmesh" / "prometheus").glob("*.json")
    entries = json.loads(file.read_text())
    names = {(entry["labels"]["service"], entry["labels"]["part"]) for entry in entries}
    assert names == {(name, part) for name in ("invoice", "nip", "payment") for part in ("app", "envoy")} | {
        ("gateway", "envoy")
    }
    target = entries[0]
    assert _get(f"http://{target['targets'][0]}{target['labels']['__metrics_path__']}")
