"""The JSON Schema says the same as the loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from generator.manifest import load_bytes
from generator.manifest.schema import json_schema, json_schema_text

ROOT = Path(__file__).resolve().parents[3]
SERVICE = {"run": "python -m orders", "serves": ["shop.v1.OrderService"]}


def manifest(**service: Any) -> dict[str, Any]:
    return {"mesh": "shop", "protos": ["protos"], "services": {"orders": {**SERVICE, **service}}}


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft7Validator.check_schema(json_schema())


def test_the_committed_schema_is_the_generated_one() -> None:
    committed = (ROOT / "mesh.schema.json").read_text(encoding="utf-8")
    assert committed == json_schema_text(), "run: nipmesh schema > mesh.schema.json"


def test_the_mesh_of_this_repository_obeys_the_schema() -> None:
    document = yaml.safe_load((ROOT / "mesh.yaml").read_text(encoding="utf-8"))
    jsonschema.validate(document, json_schema())


@pytest.mark.parametrize(
    ("document", "good"),
    [
        (manifest(), True),
        (manifest(replicas=3), True),
        (manifest(run=["python", "-m", "orders"]), True),
        (manifest(secrets={"A": {"generate": 32}, "B": "keys/b"}), True),
        (manifest(env={"A": 1, "B": "x"}), True),
        (manifest(traffic={"deadline": "2s", "methods": {"A/*": {"idle_timeout": "5m"}}}), True),
        (manifest(replicas=0), False),
        (manifest(replicas="2"), False),
        (manifest(replica=2), False),
        (manifest(run=""), False),
        (manifest(serves=[]), False),
        (manifest(traffic={"deadline": "2 s"}), False),
        (manifest(secrets={"A": {"generate": 1}}), False),
        (manifest(secrets={"A-B": "x"}), False),
        (manifest(listen="localhost:1"), False),
        ({"mesh": "shop"}, False),
        ({**manifest(), "mesh": "Shop"}, False),
    ],
)
def test_schema_and_loader_agree(document: dict[str, Any], good: bool) -> None:
    by_schema = jsonschema.Draft7Validator(json_schema()).is_valid(document)
    by_loader = not load_bytes(json.dumps(document).encode()).reporter.findings
    assert by_schema is good
    assert by_loader is good
