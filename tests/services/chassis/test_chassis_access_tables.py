"""The access tables of the three services: every method has a rule, and what is open is open on purpose."""

from __future__ import annotations

import importlib

import pytest

from nipmesh.invoice.v1 import invoice_service_pb2
from nipmesh.nip.v1 import nip_service_pb2
from nipmesh.payment.v1 import payment_service_pb2
from services.chassis import Access, Caller, ServiceDefinition, ServiceError

FILES = {"nip": nip_service_pb2, "invoice": invoice_service_pb2, "payment": payment_service_pb2}
PUBLIC = {"/nipmesh.nip.v1.AuthService/Login"}
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
    services = FILES[name].DESCRIPTOR.services_by_name.values()
    methods = {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}
    assert set(definition(name).access) == methods


@pytest.mark.parametrize("name", FILES)
def test_who_gets_in(name: str) -> None:
    for method, access in definition(name).access.items():
        assert allows(access, Caller()) is (method in PUBLIC), method
        assert allows(access, STRANGER) is (method in PUBLIC), method
        if "LedgerService" in method or "Settlement" in method:
            assert not allows(access, USER), method
