"""LNbits as it comes from PyPI, in an environment of its own: its invoices and internal payments per second.

As its users run it, with what can slow it down switched off: FakeWallet and SQLite, no rate limit, no currency (so that it asks nobody
for a price), no extensions. It has uvicorn with uvloop, one process, as its own command starts it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import venv
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.figures import Load
from benchmarks.mesh import free_port
from benchmarks.services.http import HttpClient, HttpError

VERSION: Final = "1.6.2"
REQUIREMENTS: Final = (f"lnbits=={VERSION}", "bitstring<5")
"""Its library for BOLT11 does not import with bitstring 5."""
SETTINGS: Final = {
    "LNBITS_BACKEND_WALLET_CLASS": "FakeWallet",
    "LNBITS_ADMIN_UI": "true",
    "LNBITS_RATE_LIMIT_NO": "1000000",
    "LNBITS_RATE_LIMIT_UNIT": "second",
    "LNBITS_EXTENSIONS_DEACTIVATE_ALL": "true",
    "LNBITS_EXTENSIONS_MANIFESTS": "[]",
    "LNBITS_WASM_EXTENSIONS_MANIFESTS": "[]",
    "LNBITS_PRICE_AGGREGATOR_ENABLED": "false",
    "LNBITS_EXCHANGE_RATE_PROVIDERS": "[]",
    "DEBUG": "false",
}
DESCRIPTION: Final = f"LNbits {VERSION}: FakeWallet, SQLite, one process, no rate limit, no currency, no extensions"
CALLS: Final = {"lnbits_create": 200, "lnbits_pay": 100}
"""Calls of one round, by kind: some seconds each."""
INSTALL_S_MAX: Final = 540
READY_S_MAX: Final = 60
END_S_MAX: Final = 10
BALANCE_SAT: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Lnbits:
    """A running LNbits: its loads by name, and the processes that it consists of."""

    loads: dict[str, Load]
    pids: tuple[int, ...]


class LnbitsMissingError(Exception):
    """It cannot be had here; the text says why."""


def install(cache: Path) -> Path:
    """The folder of an environment with LNbits in it, made at the first time. Raises LnbitsMissingError with pip's words."""
    folder = cache / f"lnbits-{VERSION}"
    if (folder / "complete").exists():
        return folder
    venv.create(folder, clear=True, with_pip=True)
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        done = subprocess.run(
            [*command, *REQUIREMENTS], capture_output=True, text=True, timeout=INSTALL_S_MAX, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise LnbitsMissingError(f"pip took more than {INSTALL_S_MAX} s") from error
    if done.returncode:
        raise LnbitsMissingError(f"pip: {(done.stderr or done.stdout).strip()[-500:]}")
    (folder / "complete").touch()
    return folder


def cache_folder() -> Path:
    """Where environments of peers are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nipmesh" / "benchmarks"


@asynccontextmanager
async def running_lnbits(cache: Path) -> AsyncIterator[Lnbits]:
    """Start LNbits with two wallets, one with money; end it. Raises LnbitsMissingError."""
    environment = await asyncio.to_thread(install, cache)
    with tempfile.TemporaryDirectory(prefix="nipmesh-lnbits-") as data:
        client = HttpClient(host="127.0.0.1", port=free_port())
        process = _start(environment, Path(data), client.port)
        try:
            await _until_ready(client, process, Path(data))
            payer, payee = await _wallets(client)
            yield Lnbits(loads=_loads(client, payer, payee), pids=_pids(process))
            await client.close()
        finally:
            _end(process)


def _start(environment: Path, data: Path, port: int) -> subprocess.Popen[bytes]:
    """The server process and its child, in a process group of their own. Its static files are found from site-packages only."""
    (site_packages,) = (environment / "lib").glob("python*/site-packages")
    settings = SETTINGS | {
        "LNBITS_DATA_FOLDER": str(data / "data"),
        "LNBITS_EXTENSIONS_PATH": str(data / "extensions"),
        "FAKE_WALLET_SECRET": secrets.token_hex(16),
        "HOME": str(data),
        "PATH": os.defpath,
    }
    command = [str(environment / "bin" / "lnbits"), "--host", "127.0.0.1", "--port", str(port)]
    with (data / "log").open("wb") as log:
        return subprocess.Popen(
            command, cwd=site_packages, env=settings, stdout=log, stderr=log, start_new_session=True
        )


def _pids(process: subprocess.Popen[bytes]) -> tuple[int, ...]:
    """The command and the server that it started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii")
    return (process.pid, *(int(child) for child in children.split()))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the whole group: its parent would leave the server behind."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(END_S_MAX)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return


async def _until_ready(client: HttpClient, process: subprocess.Popen[bytes], data: Path) -> None:
    """Wait until it answers, and make its first user. Raises LnbitsMissingError with the end of its log."""
    password = secrets.token_hex(16)
    body = {"username": "superuser", "password": password, "password_repeat": password}
    deadline = time.monotonic() + READY_S_MAX
    while True:
        try:
            answer = await client.call("PUT", "/api/v1/auth/first_install", body)
            break
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                log = (data / "log").read_text(errors="replace")[-500:]
                raise LnbitsMissingError(f"it did not start: {log}") from error
            await asyncio.sleep(0.2)
    client.headers["Authorization"] = f"Bearer {answer['access_token']}"


async def _wallets(client: HttpClient) -> list[dict[str, Any]]:
    """Payer and payee, without currency; the payer with money."""
    wallets = [dict(await client.call("POST", "/api/v1/wallet", {"name": name})) for name in ("payer", "payee")]
    for wallet in wallets:
        key = {"X-Api-Key": wallet["adminkey"]}
        changed = await client.call("PATCH", "/api/v1/wallet", {"currency": ""}, key)
        assert not changed["currency"], "with a currency it would ask somebody for a price"
    await client.call("PUT", "/users/api/v1/balance", {"id": wallets[0]["id"], "amount": str(BALANCE_SAT)})
    client.headers.clear()  # the wallets' own keys are enough from here on
    return wallets


def _loads(client: HttpClient, payer: dict[str, Any], payee: dict[str, Any]) -> dict[str, Load]:
    """Create an invoice of one satoshi, pay one of those."""
    open_requests: deque[str] = deque()
    payer_key, payee_key = {"X-Api-Key": payer["adminkey"]}, {"X-Api-Key": payee["inkey"]}

    async def create() -> object:
        answer = await client.call("POST", "/api/v1/payments", {"out": False, "amount": 1, "memo": "m"}, payee_key)
        open_requests.append(answer["bolt11"])
        return answer

    async def pay() -> object:
        body = {"out": True, "bolt11": open_requests.popleft()}
        answer = await client.call("POST", "/api/v1/payments", body, payer_key)
        if answer["status"] != "success":
            raise HttpError(f"the payment is {answer['status']}")
        return answer

    calls = {"lnbits_create": create, "lnbits_pay": pay}
    return {name: Load(call=call, calls=CALLS[name]) for name, call in calls.items()}


def main() -> None:
    """`python -m benchmarks.services.lnbits`: install it ahead of time."""
    try:
        print(install(cache_folder()))
    except LnbitsMissingError as error:
        sys.exit(f"LNbits cannot be had: {error}")


if __name__ == "__main__":
    main()
