"""`python -m services.nip` as a process, on secrets and data in a folder."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

ROOT = Path(__file__).resolve().parents[2]
GATEWAY = "http://127.0.0.1:8080"
MASTER_KEY = b"\x05" * 32


def write_secrets(folder: Path) -> None:
    """token.pem and keystore.key, as the runner makes them."""
    private_key = ec.generate_private_key(ec.SECP256R1())
    (folder / "token.pem").write_bytes(private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / "keystore.key").write_bytes(MASTER_KEY)
    for name in ("token.pem", "keystore.key"):
        (folder / name).chmod(0o600)


def environment(folder: Path, replica: str = "run", **more: str) -> dict[str, str]:
    """What the replica is told; its socket is `folder`/`replica`/app.sock."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("NIPMESH_", "NIP_", "OTEL_"))},
        "PYTHONPATH": f"{ROOT / 'protos'}:{ROOT}",
        "NIPMESH_SERVICE": "nip",
        "NIPMESH_LISTEN": f"unix:{folder}/{replica}/app.sock",
        "NIPMESH_DATA_DIRECTORY": str(folder / "data"),
        "NIPMESH_GATEWAY_URL": GATEWAY,
        "NIPMESH_TOKEN_KEY_FILE": str(folder / "token.pem"),
        "NIPMESH_TOKEN_ISSUER": "spiffe://nip.mesh/service/nip",
        "NIPMESH_TOKEN_AUDIENCE": "nip",
        "NIP_KEYSTORE_KEY_FILE": str(folder / "keystore.key"),
        "NIPMESH_LOG_LEVEL": "debug",
        **more,
    }


@asynccontextmanager
async def nip_process(values: dict[str, str], *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process with its output in a pipe; ended afterwards, if it still runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.nip",
        *arguments,
        env=values,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
