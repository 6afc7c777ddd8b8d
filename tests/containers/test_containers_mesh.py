"""compose.yaml, brought up for real: by Podman and podman-compose, with images of this machine's Python, Envoy and NATS."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc.aio
import pytest

from nipmesh.nip.v1 import nip_pb2, nip_service_pb2
from nipmesh.payment.v1 import payment_pb2
from support.checkout import blocks
from support.composition import Composition
from support.images import build_images, build_postgresql, reason_against
from support.nostr import User, bearer
from support.podman import Podman, PodmanError, guarded, reason_without
from support.wallet import Wallet, funded

pytestmark = [pytest.mark.timeout(420), pytest.mark.xdist_group("containers")]

LIFETIME = "30s"
OUTCOME_S_MAX = 60
POLL_S = 0.2
PAGE = "docs/containers.md"
SERVICES = ("nip", "invoice", "payment")
ASK_POSTGRESQL = """
import pathlib, psycopg
secrets = pathlib.Path('/etc/nipmesh/secrets')
authorities = f"sslrootcert={secrets}/nip/database-ca.crt"
mine = {name: (secrets / name / 'database.url').read_text().partition('&')[0] + '&' + authorities for name in ('nip', 'payment')}
with psycopg.connect(mine['payment']) as connection:
    print(connection.execute("SELECT count(*) > 0 FROM payment.transfer").fetchone()[0])
    print(connection.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone()[0])
try:
    psycopg.connect(mine['nip'].replace('/nipmesh_nip?', '/nipmesh_payment?'))
except psycopg.OperationalError as error:
    print('permission denied' in str(error))
"""


@pytest.fixture(scope="module")
def composition(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composition]:
    """The repository's mesh in containers, every one of them well; nothing of it is left afterwards."""
    reason = reason_without()
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("containers")
    # Podman wants a path of 50 characters at most.
    podman = Podman(folder=Path(tempfile.mkdtemp(prefix="nipmesh-", dir="/tmp")))
    podman.prepare()
    with guarded(podman):
        reason = reason_against(podman, folder / "trial")
        if reason is not None:
            pytest.skip(reason)
        build_images(podman, folder / "images")
        shutil.rmtree(folder / "images")
        (folder / "mesh").mkdir()
        running = Composition(podman, folder / "mesh", lifetime=LIFETIME)
        running.up()
        yield running
        running.down()
        assert podman.run("ps", "--all", "--quiet").split() == []
        assert [name for name in podman.run("volume", "ls", "--quiet").split() if running.project in name] == []


@pytest.fixture
async def channel(composition: Composition) -> AsyncIterator[grpc.aio.Channel]:
    async with composition.channel() as connection:
        yield connection


@pytest.fixture
async def alice(composition: Composition, channel: grpc.aio.Channel) -> User:
    user = User()
    await user.login(channel, f"http://{composition.gateway}")
    return user


@pytest.fixture
async def operator(composition: Composition) -> User:
    user = User()
    user.metadata = bearer(await asyncio.to_thread(composition.token, user.pubkey, "operator"))
    return user


async def paid(channel: grpc.aio.Channel, payer: User, operator: User) -> None:
    """An invoice of one account of a user is paid from another."""
    wallet = Wallet(channel, payer)
    source = await funded(wallet, Wallet(channel, operator), 50_000)
    target = await wallet.open_account()
    invoice = await wallet.invoice(target, 20_000, "coffee")
    payment = (await wallet.pay(source, invoice.payment_request)).payment
    assert payment.state == payment_pb2.Payment.STATE_SUCCEEDED
    assert (await wallet.account(target)).balance_msat == 20_000


async def until_paid(channel: grpc.aio.Channel, payer: User, operator: User) -> None:
    """The same as soon as the mesh has noticed who is gone."""
    until = time.monotonic() + OUTCOME_S_MAX
    while True:
        try:
            return await paid(channel, payer, operator)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > until:
                raise
        await asyncio.sleep(POLL_S)


async def test_the_main_job(channel: grpc.aio.Channel, alice: User, operator: User) -> None:
    wallet = Wallet(channel, alice)
    key_id = await wallet.create_key("mine")
    template = nip_pb2.EventTemplate(kind=1, content="from a container", created_at=17)
    request = nip_service_pb2.SignEventRequest(key_id=key_id, template=template)
    event = (await wallet.call(wallet.nip.SignEvent, request)).event
    verified = await wallet.call(wallet.nip.VerifyEvents, nip_service_pb2.VerifyEventsRequest(events=[event]))
    assert list(verified.results) == [nip_service_pb2.VerifyEventsResponse.RESULT_VALID]
    await paid(channel, alice, operator)


@pytest.mark.parametrize("service", ["payment-0", "payment-1-sidecar", "agent"])
async def test_a_killed_container_is_survived_and_comes_back(
    composition: Composition, channel: grpc.aio.Channel, alice: User, operator: User, service: str
) -> None:
    before = composition.pid(service)
    os.kill(before, signal.SIGKILL)
    if service != "agent":
        await until_paid(channel, alice, operator)
    until = time.monotonic() + OUTCOME_S_MAX
    while (now := composition.pid(service)) in (0, before):
        if service == "agent":  # nobody notices
            await paid(channel, alice, operator)
        assert time.monotonic() < until, composition.log(service)
        await asyncio.sleep(POLL_S)
    await asyncio.to_thread(composition.until_well, service)
    assert composition.pid(service) == now, "it died again"
    await (paid if service == "agent" else until_paid)(channel, alice, operator)


async def test_certificates_are_renewed_and_taken(
    composition: Composition, channel: grpc.aio.Channel, alice: User, operator: User
) -> None:
    before = await asyncio.to_thread(composition.envoy_serials, "payment-1")
    reloads = composition.log("events").count("Reloaded server configuration")
    assert before
    until = time.monotonic() + OUTCOME_S_MAX
    while await asyncio.to_thread(composition.envoy_serials, "payment-1") & before:
        assert time.monotonic() < until, composition.log("agent")
        await asyncio.sleep(POLL_S)
    while composition.log("events").count("Reloaded server configuration") == reloads:
        assert time.monotonic() < until, composition.log("events")
        await asyncio.sleep(POLL_S)
    await paid(channel, alice, operator)


def assert_nobody(composition: Composition, name: str) -> None:
    """A container's first process has no user's rights and no capability."""
    lines = Path(f"/proc/{composition.pid(name)}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert status["Uid"].split() == status["Gid"].split() == ["65532"] * 4, name
    assert {status[kind] for kind in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb")} == {"0" * 16}, name
    assert status["NoNewPrivs"] == "1", name


async def test_every_process_is_nobodys_and_may_do_nothing(composition: Composition) -> None:
    for name, service in composition.services.items():
        if "profiles" not in service:
            assert_nobody(composition, name)


async def test_only_the_agent_sees_keys_of_others(composition: Composition) -> None:
    look = "import pathlib\nfor p in pathlib.Path('/').glob('{}/**/*'):\n    print(p)"
    seen = {
        name: await asyncio.to_thread(
            composition.python, name, look.format("var/lib/nipmesh/pki") + "\n" + look.format("etc/nipmesh")
        )
        for name in ("agent", "payment-0", "payment-0-sidecar", "gateway")
    }
    assert "authority" in seen["agent"] or ".key" in seen["agent"]
    assert "pki" not in seen["payment-0"] + seen["payment-0-sidecar"] + seen["gateway"]
    assert "tls.key" not in seen["payment-0"]
    sidecars = [line for line in seen["payment-0-sidecar"].splitlines() if line.endswith("tls.key")]
    assert sidecars
    assert all(line.startswith("/etc/nipmesh/certificates/payment-0/") for line in sidecars)


async def test_no_file_system_can_be_written_but_its_own_volumes(composition: Composition) -> None:
    write = "open('{}', 'w')"
    for name, path in (
        ("payment-0", "/opt/nipmesh/x"),
        ("payment-0-sidecar", "/etc/nipmesh/certificates/payment-0/x"),
        ("payment-0", "/etc/nipmesh/secrets/x"),
    ):
        assert not composition.podman.succeeds(
            "exec", composition.container(name), "python", "-c", write.format(path)
        ), path


async def test_an_application_has_no_way_to_the_mesh_but_its_sidecar(composition: Composition) -> None:
    networks = {
        name: set(composition.podman.inspect(composition.container(name))["NetworkSettings"]["Networks"])
        for name in ("payment-0", "payment-0-sidecar", "gateway")
    }
    project = composition.project
    assert networks["payment-0"] == {f"{project}_events", f"{project}_database"}
    assert networks["payment-0-sidecar"] == {f"{project}_mesh"}
    assert networks["gateway"] == {f"{project}_mesh", f"{project}_outside"}


async def test_postgresql_takes_over_what_the_services_have(
    composition: Composition, channel: grpc.aio.Channel, alice: User, operator: User, tmp_path: Path
) -> None:
    """The last of this file: from here on the services keep their state there."""
    reason = build_postgresql(composition.podman, tmp_path)
    if reason is not None:
        pytest.skip(reason)
    wallet = Wallet(channel, alice)
    account = await funded(wallet, Wallet(channel, operator), 50_000)
    await asyncio.to_thread(moved, composition)
    until = time.monotonic() + OUTCOME_S_MAX
    while True:
        try:
            assert (await wallet.account(account)).balance_msat == 50_000
            break
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > until:
                raise
        await asyncio.sleep(POLL_S)
    await until_paid(channel, alice, operator)
    assert await asyncio.to_thread(asked, composition, ASK_POSTGRESQL) == "True\nTrue\nTrue\n"
    assert_nobody(composition, "postgresql")
    reloads = composition.log("postgresql").count("reloading configuration files")
    while composition.log("postgresql").count("reloading configuration files") == reloads:
        assert time.monotonic() < until, composition.log("agent")
        await asyncio.sleep(POLL_S)
    await paid(channel, alice, operator)


def asked(composition: Composition, program: str) -> str:
    """What a program in the agent's container says of PostgreSQL; again if Podman lost a name, as happens while containers come and go."""
    until = time.monotonic() + OUTCOME_S_MAX
    while True:
        try:
            return composition.python("agent", program)
        except PodmanError as error:
            if not re.search("resolve host|name resolution", str(error)) or time.monotonic() > until:
                logs = f"{composition.log('agent')[-4_000:]}\n{composition.log('postgresql')[-4_000:]}"
                raise AssertionError(f"{error}\n{logs}") from error
        time.sleep(POLL_S)


def written(mark: str) -> str:
    """The commands of the documentation with this mark."""
    (found,) = blocks(PAGE, "sh", mark)
    return found


def moved(composition: Composition) -> None:
    """What docs/containers.md says, but for the words that Podman's program lacks."""
    applications = [name for name in composition.services if name.partition("-")[0] in SERVICES and name[-1].isdigit()]
    composition.compose("stop", *applications)
    subprocess.run(["sh", "-c", written("postgresql").splitlines()[0]], cwd=composition.folder, check=True)
    composition.start("postgresql")
    copies = [line for line in written("moving").splitlines() if " run " in line]
    assert len(copies) == 3
    for line in copies:
        words = shlex.split(line.removeprefix("docker compose run"))
        composition.compose("run", "--no-deps", *words)
    for name in applications:
        composition.podman.run("rm", "--force", composition.container(name))
    composition.start(*applications)
    asked = shlex.split(written("dump").partition(" >")[0].removeprefix("docker compose exec -T postgresql"))
    assert "nipmesh_payment" in composition.podman.run("exec", composition.container("postgresql"), *asked)
