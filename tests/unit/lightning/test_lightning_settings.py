"""Which node a service gets, by its environment."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from services.chassis.errors import StartError
from services.chassis.secret import SecretFileError
from services.lightning.settings import LightningSettings, open_paying_node, open_receiving_node, simulated_place
from services.lightning.simulated import SimulatedPayingNode, SimulatedReceivingNode
from services.storage.places import PostgresPlace


def key_file(folder: Path, content: bytes = b"\x07" * 32) -> Path:
    path = folder / "node.key"
    path.write_bytes(content)
    path.chmod(0o600)
    return path


async def test_the_default_is_the_simulated_node(tmp_path: Path) -> None:
    settings = LightningSettings(data_directory=tmp_path / "data")
    payer = await open_paying_node(settings)
    receiver = await open_receiving_node(settings, key_file(tmp_path))
    assert isinstance(payer, SimulatedPayingNode)
    assert isinstance(receiver, SimulatedReceivingNode)
    assert payer.simulated
    assert (payer.currency, receiver.currency) == ("bcrt", "bcrt")
    await payer.close()
    await receiver.close()


def test_a_profile_comes_from_the_environment_and_is_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NIPMESH_LIGHTNING_SIMULATION", "seed=7,failures=0.1")
    assert LightningSettings.load().lightning_simulation == "seed=7,failures=0.1"
    monkeypatch.setenv("NIPMESH_LIGHTNING_SIMULATION", "failures=2")
    with pytest.raises(SystemExit):
        LightningSettings.load()
    assert "NIPMESH_LIGHTNING_SIMULATION: Value error, failures must be 0 to 1" in capsys.readouterr().err


def test_lnd_needs_to_be_described(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIPMESH_LIGHTNING_NODE", "lnd")
    with pytest.raises(SystemExit):
        LightningSettings.load()
    assert "lnd needs NIPMESH_LIGHTNING_ADDRESS" in capsys.readouterr().err


async def test_lnd_without_its_files_stops_the_start(tmp_path: Path) -> None:
    settings = LightningSettings(
        lightning_node="lnd",
        lightning_address="127.0.0.1:1",
        lightning_tls_certificate_file=tmp_path / "tls.cert",
        lightning_macaroon_file=tmp_path / "macaroon",
    )
    for opening in (open_paying_node(settings), open_receiving_node(settings, key_file(tmp_path))):
        with pytest.raises(StartError):
            await opening


async def test_what_is_no_key_stops_the_start(tmp_path: Path) -> None:
    settings = LightningSettings(data_directory=tmp_path / "data")
    with pytest.raises(SecretFileError, match="is no key"):
        await open_receiving_node(settings, key_file(tmp_path, bytes(32)))


def test_on_postgresql_each_service_has_a_schema_of_its_own(tmp_path: Path) -> None:
    url = SecretStr("postgresql://127.0.0.1/x")
    places = [
        simulated_place(LightningSettings(service=service, database_url=url, data_directory=tmp_path))
        for service in ("payment", "my-invoices", "")
    ]
    schemas = [place.schema for place in places if isinstance(place, PostgresPlace)]
    assert schemas == ["simulated_lightning_payment", "simulated_lightning_my_invoices", "simulated_lightning_node"]
    assert simulated_place(LightningSettings(data_directory=tmp_path)) == tmp_path
