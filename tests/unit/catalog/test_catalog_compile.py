"""Any team's protobufs become methods; what protoc refuses becomes findings at the manifest's line."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from generator.catalog import Catalog, compile_catalog
from generator.catalog import protoc as protoc_module
from generator.manifest.finding import Position, Reporter
from generator.manifest.values import Located
from generator.model import Idempotency, StreamingKind

ROOT = Path(__file__).resolve().parents[3]

PROTO3 = """\
syntax = "proto3";
package shop.v1;
import "google/api/annotations.proto";
import "google/protobuf/empty.proto";
import "google/rpc/status.proto";
message Order { string id = 1; google.rpc.Status status = 2; }
service OrderService {
  rpc Watch(Order) returns (stream Order) { option idempotency_level = NO_SIDE_EFFECTS; }
  rpc Get(Order) returns (Order) {
    option idempotency_level = NO_SIDE_EFFECTS;
    option (google.api.http) = {get: "/v1/orders/{id}"};
  }
  rpc Put(Order) returns (google.protobuf.Empty) { option idempotency_level = IDEMPOTENT; }
  rpc Upload(stream Order) returns (Order);
  rpc Chat(stream Order) returns (stream Order);
}
"""
PROTO2 = """\
syntax = "proto2";
message Old { required string id = 1; optional group Inner = 2 { optional int32 x = 1; } }
service OldService { rpc Do(Old) returns (Old); }
"""
EDITION = """\
edition = "2023";
package new.v1;
import "buf/validate/validate.proto";
message New { string id = 1 [features.field_presence = IMPLICIT, (buf.validate.field).string.min_len = 1]; }
service NewService { rpc Do(New) returns (New); }
"""


def located(*folders: str) -> tuple[Located[str], ...]:
    return tuple(
        Located(value=folder, position=Position(line=4, column=10 + 8 * index)) for index, folder in enumerate(folders)
    )


def compile_at(base: Path, *folders: str) -> tuple[Catalog | None, Reporter]:
    reporter = Reporter(path="mesh.yaml", lines=("",) * 3 + ("protos: [protos]",))
    return compile_catalog(located(*folders), base, reporter), reporter


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def compiled(base: Path, *folders: str) -> Catalog:
    catalog, reporter = compile_at(base, *folders)
    assert catalog is not None, "\n".join(map(str, reporter.findings))
    assert not reporter.findings
    return catalog


def test_methods_have_kind_idempotency_and_types(tmp_path: Path) -> None:
    write(tmp_path / "protos/shop/v1/orders.proto", PROTO3)
    methods = {method.name: method for method in compiled(tmp_path, "protos").services["shop.v1.OrderService"]}
    assert list(methods) == ["Chat", "Get", "Put", "Upload", "Watch"]
    assert methods["Get"].path == "/shop.v1.OrderService/Get"
    assert methods["Put"].response == "google.protobuf.Empty"
    kinds = {name: method.streaming for name, method in methods.items()}
    assert kinds == {
        "Chat": StreamingKind.BIDIRECTIONAL,
        "Get": StreamingKind.UNARY,
        "Put": StreamingKind.UNARY,
        "Upload": StreamingKind.CLIENT,
        "Watch": StreamingKind.SERVER,
    }
    levels = {name: method.idempotency for name, method in methods.items()}
    assert levels["Get"] is Idempotency.NO_SIDE_EFFECTS
    assert levels["Put"] is Idempotency.IDEMPOTENT
    assert levels["Upload"] is Idempotency.UNKNOWN


def test_proto2_without_a_package_and_editions_work(tmp_path: Path) -> None:
    write(tmp_path / "old/old.proto", PROTO2)
    write(tmp_path / "new/new.proto", EDITION)
    services = compiled(tmp_path, "old", "new").services
    assert {"OldService", "new.v1.NewService"} <= set(services)
    assert services["OldService"][0].path == "/OldService/Do"


def test_the_protobufs_of_this_repository_compile() -> None:
    catalog = compiled(ROOT, "protos")
    names = {file.name for file in descriptor_pb2.FileDescriptorSet.FromString(catalog.descriptor_set).file}
    assert "google/protobuf/timestamp.proto" in names


def test_the_same_files_give_the_same_bytes_anywhere(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name / "protos/b.proto", PROTO2)
        write(tmp_path / name / "protos/a.proto", PROTO3)
    first, second = (compiled(tmp_path / name, "protos").descriptor_set for name in ("one", "two"))
    assert first == second


def test_a_team_may_bring_its_own_copies_of_common_files(tmp_path: Path) -> None:
    rules = 'syntax = "proto2"; package buf.validate; import "google/protobuf/descriptor.proto"; '
    rules += "message Own { optional string x = 1; } extend google.protobuf.FieldOptions { optional Own own = 51234; }"
    write(tmp_path / "protos/buf/validate/validate.proto", rules)
    own = 'syntax = "proto3"; package p; import "buf/validate/validate.proto"; '
    own += 'message A { string a = 1 [(buf.validate.own).x = "y"]; } service S { rpc Do(A) returns (A); }'
    write(tmp_path / "protos/p.proto", own)
    assert "p.S" in compiled(tmp_path, "protos").services


def test_hidden_folders_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "protos/a.proto", PROTO2)
    write(tmp_path / "protos/.cache/a.proto", PROTO2)
    assert "OldService" in compiled(tmp_path, "protos").services


@pytest.mark.parametrize("name", ["with space", "-I", "eq=ual", "ümlaut", "@file", "'q'"])
def test_folders_and_files_may_have_any_sane_name(tmp_path: Path, name: str) -> None:
    write(tmp_path / name / f"{name}.proto", PROTO2)
    assert "OldService" in compiled(tmp_path, name).services


def test_errors_of_protoc_quote_the_proto_and_point_at_the_manifest(tmp_path: Path) -> None:
    write(tmp_path / "good/good.proto", PROTO2)
    bad = 'syntax = "proto3";\nimport "nowhere.proto";\nmessage A {\n  strin a = 1;\n}\nmessage A {}\n'
    write(tmp_path / "bad/x/bad.proto", bad)
    catalog, reporter = compile_at(tmp_path, "good", "bad")
    assert catalog is None
    findings = reporter.sorted()
    assert {finding.code for finding in findings} == {"NM202"}
    assert {(finding.line, finding.column) for finding in findings} == {(4, 18)}
    texts = [str(finding) for finding in findings]
    assert any("bad/x/bad.proto:2:1:" in text and 'import "nowhere.proto";' in text for text in texts)
    assert any("add the folder that holds it to `protos`" in text for text in texts)


def test_a_type_that_is_not_defined_is_quoted(tmp_path: Path) -> None:
    write(tmp_path / "protos/a.proto", 'syntax = "proto3";\nmessage A {\n  strin a = 1;\n}\n')
    _, reporter = compile_at(tmp_path, "protos")
    (finding,) = reporter.findings
    assert finding.message.startswith('protos/a.proto:3:3: "strin" is not defined')
    assert finding.cause == "the line is `strin a = 1;`"


@pytest.mark.parametrize(
    "content", [b"", b"\x00\xff\xfe", b"syntax", b'syntax = "proto9";', b"{" * 100_000, b"message A {" * 5_000]
)
def test_garbage_is_a_finding_or_an_empty_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "protos").mkdir()
    (tmp_path / "protos/a.proto").write_bytes(content)
    catalog, reporter = compile_at(tmp_path, "protos")
    assert catalog is not None or reporter.has_errors
    assert all(str(finding).replace("\n", "").isprintable() for finding in reporter.findings)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    write(tmp_path / "co:lon/a.proto", PROTO2)
    for folder, words in (
        ("none", "is not there"),
        ("file", "is not a folder"),
        ("empty", "holds no .proto file"),
        ("co:lon", "colon"),
    ):
        catalog, reporter = compile_at(tmp_path, folder)
        assert catalog is None
        (finding,) = reporter.findings
        assert finding.code == "NM201"
        assert words in finding.cause


def test_the_same_file_in_two_folders_is_a_finding(tmp_path: Path) -> None:
    write(tmp_path / "one/a.proto", PROTO2)
    write(tmp_path / "two/a.proto", PROTO2)
    catalog, reporter = compile_at(tmp_path, "one", "two")
    assert catalog is None
    (finding,) = reporter.findings
    assert finding.code == "NM204"
    assert "`a.proto` is in `one` and in `two`" in finding.cause


def test_file_names_with_line_breaks_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "protos/a\nb.proto", PROTO2)
    catalog, reporter = compile_at(tmp_path, "protos")
    assert catalog is None
    assert "strange name" in reporter.findings[0].cause


def test_too_many_files_are_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protoc_module, "FILES_MAX", 2)
    for index in range(4):
        write(tmp_path / f"protos/{index}.proto", "")
    _, reporter = compile_at(tmp_path, "protos")
    assert reporter.findings[0].code == "NM205"


def test_a_compiler_that_does_not_end_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "protos/a.proto", PROTO2)
    monkeypatch.setattr(protoc_module, "COMPILE_SECONDS_MAX", 0.0)
    _, reporter = compile_at(tmp_path, "protos")
    assert reporter.findings[0].code == "NM203"


def test_compiling_writes_nothing_to_our_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "protos/a.proto", "nonsense")
    compile_at(tmp_path, "protos")
    assert capfd.readouterr() == ("", "")


def test_compiling_from_many_threads_gives_the_same(tmp_path: Path) -> None:
    write(tmp_path / "protos/a.proto", PROTO3)
    with ThreadPoolExecutor(max_workers=4) as pool:
        results = list(pool.map(lambda _: compiled(tmp_path, "protos").descriptor_set, range(8)))
    assert len(set(results)) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_folder_is_a_finding(tmp_path: Path) -> None:
    write(tmp_path / "protos/sub/a.proto", PROTO2)
    (tmp_path / "protos/sub").chmod(0)
    try:
        _, reporter = compile_at(tmp_path, "protos")
    finally:
        (tmp_path / "protos/sub").chmod(0o700)
    assert reporter.findings[0].code == "NM201"
