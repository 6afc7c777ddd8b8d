"""The Compose file: of this mesh, in step with what is committed, and valid where the schema is at hand."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import jsonschema
import pytest
import yaml

from generator.analysis import check_manifest
from generator.outputs.compose import COMPOSE_FILE, render_compose
from generator.outputs.compose.emit import emit
from support.foreign import FOREIGN
from support.meshes import REPOSITORY, repository_mesh


def test_the_committed_file_is_what_the_manifest_renders() -> None:
    hint = "run `nipmesh render --target compose -o .`"
    assert (REPOSITORY / COMPOSE_FILE).read_text(encoding="utf-8") == render_compose(repository_mesh()), hint


def test_each_replica_is_an_application_and_a_sidecar() -> None:
    services = yaml.safe_load(render_compose(repository_mesh()))["services"]
    replicas = {
        f"{service.name}-{index}" for service in repository_mesh().services for index in range(service.replicas)
    }
    assert set(services) == replicas | {f"{name}-sidecar" for name in replicas} | {"gateway", "introspection"}
    assert services["gateway"]["ports"] == ["127.0.0.1:8080:8080"]
    assert all("ports" not in service for name, service in services.items() if name != "gateway")


def test_it_is_valid_by_the_compose_specification() -> None:
    try:
        package = distribution("check-jsonschema")
    except PackageNotFoundError:
        pytest.skip("the schema of the Compose specification comes with check-jsonschema, which is not installed")
    schema = Path(str(package.locate_file("check_jsonschema/builtin_schemas/vendor/compose-spec.json")))
    jsonschema.validate(yaml.safe_load(render_compose(repository_mesh())), json.loads(schema.read_text()))


def test_regression_an_application_with_tcp_only_finds_its_port() -> None:
    analysis = check_manifest(FOREIGN / "mesh.yaml")
    assert analysis.mesh is not None
    services = yaml.safe_load(render_compose(analysis.mesh))["services"]
    for name in ("customs-0", "customs-1"):
        assert services[name]["environment"]["PORT"] == "9471"
        assert services[name]["network_mode"] == f"service:{name}-sidecar"
    assert "PORT" not in services["tariff-0"]["environment"]


def test_a_version_shares_its_services_data_and_knows_its_own_name() -> None:
    mesh = repository_mesh()
    version = replace(mesh.service("payment"), name="payment-next", version_of="payment")
    document = yaml.safe_load(render_compose(replace(mesh, services=(*mesh.services, version))))
    application = document["services"]["payment-next-0"]
    assert "payment-data:/var/lib/nipmesh" in application["volumes"]
    assert "payment-next-data" not in document["volumes"]
    names = (application["environment"]["NIPMESH_SERVICE"], application["environment"]["NIPMESH_VERSION"])
    assert names == ("payment", "payment-next")


def test_a_dollar_of_the_manifest_is_no_variable() -> None:
    mesh = repository_mesh()
    changed = replace(mesh.services[0], command=("sh", "-c", "echo $HOME"), environment=(("PRICE", "5$"),))
    service = yaml.safe_load(render_compose(replace(mesh, services=(changed,))))["services"]["invoice-0"]
    assert service["command"] == ["sh", "-c", "echo $$HOME"]
    assert service["environment"]["PRICE"] == "5$$"


@pytest.mark.parametrize("text", ["n", "on", "a: b", "#x", "\n", "'\"", "0x1", "é\U0001f600", "", "- a"])
def test_text_stays_text(text: str) -> None:
    document = {"value": text, "list": [text, {"inner": text}], text or "empty": 1, "none": None, "no": {}}
    assert yaml.safe_load(emit(document)) == document
