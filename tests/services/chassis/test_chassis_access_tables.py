"""The access tables of the three services: every method has a rule, and what is open is open on purpose."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

import pytest

from nipmesh.operations.v1 import event_service_pb2, saga_service_pb2
from services.chassis import Access, Caller, ServiceDefinition, ServiceError


def own_files(name: str) -> list[ModuleType]:
    """Every file with services of nipmesh.NAME.v1."""
    package = importlib.import_module(f"nipmesh.{name}.v1")
    modules = (each.name for each in pkgutil.iter_modules(package.__path__) if each.name.endswith("service_pb2"))
    return [importlib.import_module(f"nipmesh.{name}.v1.{module}") for module in sorted(modules)]


OPERATIONS: dict[str, list[ModuleType]] = {"nip": [], "invoice": [], "payment": [saga_service_pb2]}
"""What services answer besides what their own package says; all of them EventService."""
FILES = {name: [*own_files(name), *others, event_service_pb2] for name, others in OPERATIONS.items()}
PUBLIC = {f"/nipmesh.nip.v1.AuthService/{name}" for name in ("Login", "CreateChallenge", "VerifyChallenge")}
USER, OPERATOR = Caller(peer="g", gateway=True, subject="ab" * 32), "LedgerService"
STRANGER = Caller(peer="spiffe://nip.mesh/service/stranger", service="stranger")


def definition(name: str) -> ServiceDefinition:  # type: ignore[type-arg]
    module = importlib.import_module(f"services.{name}.service")
    (found,) = (value for value in vars(module).values() if isinstance(value, ServiceDefinition))
    return found


def allows(access: Access, caller: Caller) -> bool:
    try:
        access.check(caller)
    except ServiceError:
        return False
    return True


@pytest.mark.parametrize("name", FILES)
def test_every_method_has_a_rule(name: str) -> None:
    services = [service for file in FILES[name] for service in file.DESCRIPTOR.services_by_name.values()]
    methods = {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}
    assert set(definition(name).access) == methods


@pytest.mark.parametrize("name", FILES)
def test_who_gets_in(name: str) -> None:
    for method, access in definition(name).access.items():
        assert allows(access, Caller()) is (method in PUBLIC), method
        assert allows(access, STRANGER) is (method in PUBLIC), method
        if "LedgerService" in method or "Settlement" in method:
            assert not allows(access, USER), method
