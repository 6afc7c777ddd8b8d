"""What the server of events is told: accounts, what leads from one to another, and nothing else."""

import json
from dataclasses import replace
from pathlib import Path

from generator.cli.render import write_events
from generator.model import Events, Hearing, Mesh, SocketAddress
from generator.render.nats import NatsPlace, accounts, configuration, hearers, permissions, placeholders
from support.meshes import repository_mesh


def mesh() -> Mesh:
    """`payment` hears two types of `invoice`; a version of it hears the same, as one."""
    whole = repository_mesh()
    hears = (Hearing(publisher="invoice", types=("a.v1.*", "b.v1.x")),)
    services = tuple(replace(one, consumes=hears if one.name == "payment" else ()) for one in whole.services)
    version = replace(next(one for one in services if one.name == "payment"), name="payment-blue", version_of="payment")
    return replace(whole, services=(*services, version), events=Events(cluster=None, retention_ms=1, bytes_max=1))


def test_only_what_is_heard_leads_out_of_the_meshs_account() -> None:
    hears = hearers(mesh())
    assert list(hears) == ["invoice", "nip", "payment"]
    found = accounts("nip", hears, placeholders(hears))
    assert list(found) == ["MESH", "invoice", "nip", "payment"]
    asked = [one for one in found["MESH"]["exports"] if "CONSUMER" in one.get("service", "")]
    assert asked == [
        {"service": "$JS.API.CONSUMER.CREATE.nip.*.nip.invoice.a.v1.*", "accounts": ["payment"]},
        {"service": "$JS.API.CONSUMER.CREATE.nip.*.nip.invoice.b.v1.x", "accounts": ["payment"]},
    ]
    taken = [one for one in found["MESH"]["exports"] if one.get("service", "").startswith("nip.")]
    assert taken == [{"service": f"nip.{name}.>", "accounts": [name]} for name in ("invoice", "nip", "payment")]
    assert not any("CONSUMER" in one.get("service", {}).get("subject", "") for one in found["nip"]["imports"])


def test_no_user_may_ask_for_events_itself_or_change_a_stream() -> None:
    allowed = permissions("nip", "payment")["publish"]["allow"]
    assert "nip.payment.>" in allowed
    forbidden = (
        "MESH.",
        "$JS.API.STREAM.CREATE",
        "$JS.API.STREAM.UPDATE",
        "$JS.API.STREAM.DELETE",
        "$JS.API.STREAM.PURGE",
    )
    assert not any(subject.startswith(forbidden) or subject in (">", "$JS.>", "$JS.API.>") for subject in allowed)


def test_a_change_lets_everybody_hear_what_either_mesh_says() -> None:
    old, new = mesh(), repository_mesh()
    assert hearers(old, new)["payment"] == hearers(old)["payment"]
    assert hearers(new)["payment"] == ()


def test_the_file_is_the_same_for_the_same_mesh_and_asks_for_durability() -> None:
    place = NatsPlace(
        listen=SocketAddress(host="127.0.0.1", port=4222),
        certificate=Path("/c"),
        private_key=Path("/k"),
        store=Path("/s"),
    )
    hears = hearers(mesh())
    text = configuration("nip", place, accounts("nip", hears, placeholders(hears)))
    assert text == configuration("nip", place, accounts("nip", hears, placeholders(hears)))
    document = json.loads(text)
    assert document["jetstream"]["sync_interval"] == "always"
    assert document["tls"]["min_version"] == "1.3"
    assert document["host"] == "127.0.0.1"
    assert not {"http", "https", "monitor_port", "no_auth_user", "cluster", "leafnodes"} & document.keys()


def test_render_writes_the_accounts_for_a_cluster_of_others(tmp_path: Path) -> None:
    assert write_events(replace(mesh(), events=None), tmp_path) == []
    (path,) = write_events(mesh(), tmp_path)
    assert path == tmp_path / "events" / "accounts.json"
    document = json.loads(path.read_text())
    assert document["accounts"]["payment"]["users"][0]["nkey"] == "PUBLIC KEY OF payment"
    assert write_events(mesh(), tmp_path) == []
