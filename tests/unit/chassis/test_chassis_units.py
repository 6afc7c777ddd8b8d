"""The pure parts of the chassis: reasons, callers, access rules, secrets, settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from nipmesh.common.v1 import error_pb2
from services.chassis import (
    CODE_OF,
    SERVICE,
    Access,
    Caller,
    ChassisSettings,
    FieldViolation,
    Identities,
    InvalidRequest,
    Reason,
    SecretBytes,
    SecretFileError,
    ServiceError,
    load_secret,
    load_settings,
    precondition_failed,
    status_of,
    unavailable,
)
from services.chassis.caller import PEER_HEADER
from services.chassis.errors import dependency_failed, push_back_of

USER = "ab" * 32
PREFIX = "ERROR_REASON_"
IDENTITIES = Identities(trust_domain="nip.mesh", gateway="spiffe://nip.mesh/gateway")
GATEWAY = (PEER_HEADER, "URI=spiffe://nip.mesh/gateway")


def test_reasons_are_those_of_the_api() -> None:
    names = {name.removeprefix(PREFIX) for name, _ in error_pb2.ErrorReason.items()} - {"UNSPECIFIED"}
    assert {reason.value for reason in Reason} == names


def test_codes_are_those_that_the_api_documents() -> None:
    text = Path("protos/nipmesh/common/v1/error.proto").read_text()
    documented = re.findall(r"// \[([A-Z_]+)\][^\n]*(?:\n  //[^\n]*)*\n  ERROR_REASON_([A-Z0-9_]+) =", text)
    assert len(documented) == len(Reason)
    assert {name: code for code, name in documented} == {reason.value: code.name for reason, code in CODE_OF.items()}


def test_an_error_with_all_details() -> None:
    error = ServiceError(
        Reason.INSUFFICIENT_BALANCE,
        "too little",
        metadata={"account": "a"},
        retry_delay_ms=1_500,
        fields=[FieldViolation(field="amount_msat", description="too much", reason="int64.lte")],
        preconditions=precondition_failed(Reason.INSUFFICIENT_BALANCE, "too little", subject="a").preconditions,
    )
    status = status_of(error)
    kinds = [detail.TypeName() for detail in status.details]
    assert kinds == [
        "google.rpc.ErrorInfo",
        "google.rpc.RetryInfo",
        "google.rpc.BadRequest",
        "google.rpc.PreconditionFailure",
    ]
    retry = error_details_pb2.RetryInfo()
    assert status.details[1].Unpack(retry)
    assert (retry.retry_delay.seconds, retry.retry_delay.nanos) == (1, 500_000_000)
    assert status.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]


@pytest.mark.parametrize(
    ("delay_ms", "metadata"),
    [
        (None, {}),
        (0, {"grpc-retry-pushback-ms": "0"}),
        (999, {"grpc-retry-pushback-ms": "999"}),
        (1_000, {"grpc-retry-pushback-ms": "1000", "retry-after": "1"}),
        (1_001, {"grpc-retry-pushback-ms": "1001", "retry-after": "2"}),
    ],
)
def test_whoever_repeats_calls_by_himself_learns_when(delay_ms: int | None, metadata: dict[str, str]) -> None:
    assert dict(push_back_of(ServiceError(Reason.OVERLOADED, "later", retry_delay_ms=delay_ms))) == metadata


def test_nobody_repeats_by_himself_what_failed_because_of_a_dependency() -> None:
    assert dict(push_back_of(dependency_failed("another service does not answer"))) == {"grpc-retry-pushback-ms": "-1"}


def test_details_are_limited() -> None:
    fields = [FieldViolation(field=f"f{number}", description="x") for number in range(1_000)]
    assert len(status_of(InvalidRequest(*fields)).SerializeToString()) < 8_192
    assert len(ServiceError(Reason.INTERNAL, "x" * 100_000).message) == 1_000


def test_an_unknown_reason_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="NOT_A_REASON"):
        ServiceError("NOT_A_REASON", "x")
    assert unavailable("x").retry_delay_ms == 200


@pytest.mark.parametrize(
    "header",
    [
        "URI=spiffe://nip.mesh/service/payment",
        'By=spiffe://nip.mesh/service/nip;Hash=00ff;Subject="CN=a,O=b;URI=spiffe://nip.mesh/gateway";URI=spiffe://nip.mesh/service/payment',
    ],
)
def test_a_service_is_known_by_its_spiffe_id(header: str) -> None:
    caller = IDENTITIES.caller([(PEER_HEADER, header), ("x-nipmesh-subject", USER), ("x-nipmesh-role", "operator")])
    assert (caller.service, caller.subject, caller.roles, caller.scope) == (
        "payment",
        "",
        frozenset(),
        "spiffe://nip.mesh/service/payment",
    )


@pytest.mark.parametrize(
    "values",
    [
        [],
        [""],
        ["URI="],
        ["Hash=00"],
        ["URI=https://nip.mesh/gateway"],
        ["URI=spiffe://nip.mesh/gateway,URI=spiffe://nip.mesh/gateway"],
        ["URI=spiffe://nip.mesh/gateway;URI=spiffe://nip.mesh/service/payment"],
        ["URI=spiffe://nip.mesh/gateway", "URI=spiffe://nip.mesh/gateway"],
        ["URI=spiffe://nip.mesh/gateway\n"],
    ],
)
def test_a_doubtful_peer_is_nobody(values: list[str]) -> None:
    metadata = [*((PEER_HEADER, value) for value in values), ("x-nipmesh-subject", USER)]
    assert IDENTITIES.caller(metadata) == Caller()


def test_a_service_of_another_domain_is_no_service() -> None:
    for uri in (
        "spiffe://other.mesh/service/payment",
        "spiffe://nip.mesh/service/payment/x",
        "spiffe://nip.mesh/payment",
    ):
        caller = IDENTITIES.caller([(PEER_HEADER, f"URI={uri}")])
        assert caller == Caller(peer=uri)


def test_claims_come_through_the_gateway_alone() -> None:
    claims = (("x-nipmesh-subject", USER), ("x-nipmesh-role", "auditor, operator"))
    caller = IDENTITIES.caller([GATEWAY, *claims])
    assert (caller.subject, caller.roles, caller.operator, caller.scope) == (USER, {"auditor", "operator"}, True, USER)
    for subject in ("", USER.upper(), USER + "0", USER + "\n"):
        assert IDENTITIES.caller([GATEWAY, ("x-nipmesh-subject", subject), claims[1]]).roles == frozenset()


EXPIRE_TIME = "x-nipmesh-token-expire-time"


@pytest.mark.parametrize(
    ("values", "expire_time_s"), [([], None), (["1800000000"], 1_800_000_000.0), (["1800000000.25"], 1_800_000_000.25)]
)
def test_the_gateway_tells_when_the_token_expires(values: list[str], expire_time_s: float | None) -> None:
    claims = [("x-nipmesh-subject", USER), *((EXPIRE_TIME, value) for value in values)]
    caller = IDENTITIES.caller([GATEWAY, *claims])
    assert (caller.subject, caller.expire_time_s) == (USER, expire_time_s)
    service = IDENTITIES.caller([(PEER_HEADER, "URI=spiffe://nip.mesh/service/payment"), *claims])
    assert (service.service, service.expire_time_s) == ("payment", None)


@pytest.mark.parametrize(
    "values",
    [[""], ["never"], ["-1"], ["1e9"], ["inf"], ["nan"], ["1" * 12], ["1800000000\n"], ["١٨"], ["1800000000"] * 2],
)
def test_a_doubtful_expire_time_makes_nobody_a_user(values: list[str]) -> None:
    claims = [("x-nipmesh-subject", USER), ("x-nipmesh-role", "operator"), *((EXPIRE_TIME, value) for value in values)]
    assert IDENTITIES.caller([GATEWAY, *claims]) == Caller(peer="spiffe://nip.mesh/gateway", gateway=True)


@given(st.text())
def test_no_header_breaks_the_reader(text: str) -> None:
    caller = IDENTITIES.caller([(PEER_HEADER, text)])
    assert caller.subject == ""
    assert not caller.roles


def test_access_combines() -> None:
    either = Access.USER | SERVICE("payment", "invoice")
    either.check(Caller(peer="p", gateway=True, subject=USER))
    either.check(Caller(peer="p", service="invoice"))
    with pytest.raises(ServiceError, match="CALLER_NOT_ALLOWED"):
        either.check(Caller(peer="p", service="nip"))
    with pytest.raises(ServiceError, match="CALLER_NOT_ALLOWED"):
        SERVICE("payment").check(Caller(peer="p", gateway=True))
    with pytest.raises(ServiceError, match="NOT_AUTHENTICATED"):
        Access().check(Caller())


def test_a_secret_shows_nothing() -> None:
    secret = SecretBytes(b"hidden")
    assert {repr(secret), str(secret), f"{secret}", f"{secret:>40}"} == {"[redacted]"}
    assert secret == SecretBytes(b"hidden")
    assert secret != SecretBytes(b"other")
    with pytest.raises(TypeError):
        __import__("pickle").dumps(secret)


def test_a_secret_file_must_be_private(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"k" * 32)
    path.chmod(0o644)
    with pytest.raises(SecretFileError, match=f"chmod 600 {path}"):
        load_secret(path)
    path.chmod(0o600)
    assert load_secret(path, length=32).reveal() == b"k" * 32
    with pytest.raises(SecretFileError, match="holds 32 bytes, needed are 16") as caught:
        load_secret(path, length=16)
    assert "kkk" not in str(caught.value)
    for wrong in (tmp_path / "missing", tmp_path):
        with pytest.raises(SecretFileError):
            load_secret(wrong)


def test_a_credential_of_systemd_may_show_what_its_access_list_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "credentials" / "KEY"
    path.parent.mkdir()
    path.write_bytes(b"k")
    path.chmod(0o440)
    with pytest.raises(SecretFileError, match="mode 0440"):
        load_secret(path)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(path.parent))
    assert load_secret(path).reveal() == b"k"
    for mode in (0o444, 0o460, 0o640 | 0o020):
        path.chmod(mode)
        with pytest.raises(SecretFileError):
            load_secret(path)
    elsewhere = tmp_path / "KEY"
    elsewhere.write_bytes(b"k")
    elsewhere.chmod(0o440)
    for way in (elsewhere, path.parent / ".." / "KEY"):
        with pytest.raises(SecretFileError, match="mode 0440"):
            load_secret(way)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIPMESH_SERVICE", "payment")
    monkeypatch.setenv("NIPMESH_TRUST_DOMAIN", "other.mesh")
    monkeypatch.setenv("NIPMESH_CLAIM_HEADERS", "sub=X-Sub,role=X-Role,exp=X-Exp")
    settings = ChassisSettings()
    assert settings.spiffe_id == "spiffe://other.mesh/service/payment"
    assert settings.identities == Identities(
        trust_domain="other.mesh",
        gateway="spiffe://other.mesh/gateway",
        subject_header="x-sub",
        role_header="x-role",
        expire_time_header="x-exp",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NIPMESH_LISTEN", "unix:/" + "x" * 200),
        ("NIPMESH_CLAIM_HEADERS", "sub"),
        ("NIPMESH_REPLICA", "minus"),
        ("NIPMESH_LOG_LEVEL", "loud"),
    ],
)
def test_wrong_settings_name_the_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as caught:
        load_settings(ChassisSettings)
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {name}: ")
    assert value not in err


def test_every_setting_is_documented() -> None:
    fields: dict[str, Any] = dict(ChassisSettings.model_fields)
    assert all(field.description for field in fields.values())


def test_a_variable_with_a_name_of_its_own_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    class Settings(ChassisSettings):
        key_file: Path = Field(validation_alias="NIP_KEYSTORE_KEY_FILE")
        token_audience: str

    with pytest.raises(SystemExit):
        load_settings(Settings)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in lines] == ["NIP_KEYSTORE_KEY_FILE", "NIPMESH_TOKEN_AUDIENCE"]
    assert Settings(key_file=Path("x"), token_audience="a").key_file == Path("x")  # type: ignore[call-arg]
