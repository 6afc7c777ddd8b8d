"""Names of services, who belongs to whom, and what cannot become a mesh."""

from __future__ import annotations

from pathlib import Path

import pytest

from generator.analysis import check_manifest
from generator.manifest.types import NAME
from generator.scaffold import NoServicesError, RefusedError, manifest_text, plan_of, usable_name


def proto(package: str, *services: str) -> str:
    lines = ['syntax = "proto3";', f"package {package};" if package else "", "message M {}"]
    return "\n".join([*lines, *(f"service {name} {{ rpc Do(M) returns (M); }}" for name in services)])


def written(base: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(text)
    return base


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("My Shop!", "my-shop"),
        ("shop_2", "shop-2"),
        ("2fast", "fast"),
        ("日本", "mesh"),
        ("x" * 90, "x" * 40),
        ("a--b", "a-b"),
    ],
)
def test_usable_names(text: str, name: str) -> None:
    assert usable_name(text) == name


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({"a/b/v1/x.proto": proto("a.b.v1", "X")}, {"b": ["a.b.v1.X"]}, id="package without version"),
        pytest.param(
            {"b/v1/x.proto": proto("b.v1", "X"), "b/v2beta1/x.proto": proto("b.v2beta1", "X")},
            {"b": ["b.v1.X", "b.v2beta1.X"]},
            id="versions of one package",
        ),
        pytest.param(
            {"a/b/x.proto": proto("a.b", "X"), "c/b/y.proto": proto("c.b", "Y")},
            {"b": ["a.b.X"], "c-b": ["c.b.Y"]},
            id="last words alike",
        ),
        pytest.param({"x.proto": proto("", "OrderDeskService")}, {"order-desk": ["OrderDeskService"]}, id="no package"),
        pytest.param({"x.proto": proto("v1", "X")}, {"x": ["v1.X"]}, id="nothing but a version"),
        pytest.param({"x.proto": proto("gateway", "X")}, {"gateway-2": ["gateway.X"]}, id="reserved"),
    ],
)
def test_each_package_is_a_service(tmp_path: Path, files: dict[str, str], expected: dict[str, list[str]]) -> None:
    plan = plan_of(written(tmp_path, files), "m")
    assert {service.name: list(service.serves) for service in plan.services} == expected
    (tmp_path / "mesh.yaml").write_text(manifest_text(plan).replace("COMMAND-THAT-STARTS-IT", "x"))
    analysis = check_manifest(tmp_path / "mesh.yaml")
    assert analysis.mesh is not None, [str(finding) for finding in analysis.findings]


def test_a_program_that_serves_several_packages_is_one_service(tmp_path: Path) -> None:
    source = "add_AServicer_to_server(x)\nadd_BServicer_to_server(x)\nif __name__ == '__main__': ..."
    files = {"a/a.proto": proto("a", "A"), "b/b.proto": proto("b", "B"), "depot/main.py": source}
    (service,) = plan_of(written(tmp_path, files), "m").services
    assert (service.name, service.serves) == ("depot", ("a.A", "b.B"))
    assert service.program is not None
    assert service.program.run == "python depot/main.py"


def test_a_name_that_two_packages_have_is_nobodys_for_sure(tmp_path: Path) -> None:
    source = "add_XServicer_to_server(x)\nif __name__ == '__main__': ..."
    files = {"a/a.proto": proto("a", "X"), "b/b.proto": proto("b", "X"), "s.py": source}
    services = plan_of(written(tmp_path, files), "m").services
    assert [service.program for service in services] == [None, None]


def test_a_long_list_stands_one_a_line(tmp_path: Path) -> None:
    names = [f"VeryLongServiceName{number}Service" for number in range(6)]
    text = manifest_text(plan_of(written(tmp_path, {"a.proto": proto("a", *names)}), "m"))
    assert "    serves:\n      - a.VeryLongServiceName0Service\n" in text
    assert max(map(len, text.splitlines())) < 140


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "there is no .proto file below this folder"),
        ({"a.proto": 'syntax = "proto3"; message M {}'}, "there are 1 .proto file, and no `service` in any of them"),
        (
            {"a.proto": 'syntax = "proto3"; service Empty {}'},
            "there are 1 .proto file, and no `service` in any of them",
        ),
    ],
)
def test_nothing_to_mesh(tmp_path: Path, files: dict[str, str], reason: str) -> None:
    with pytest.raises(NoServicesError) as caught:
        plan_of(written(tmp_path, files), "m")
    assert str(caught.value) == reason
    assert caught.value.fix


def test_a_folder_with_a_colon(tmp_path: Path) -> None:
    folder = tmp_path / "a:b"
    folder.mkdir()
    with pytest.raises(NoServicesError, match="colon"):
        plan_of(written(folder, {"a.proto": proto("a", "A")}), "m")


@pytest.mark.parametrize(
    ("name", "more", "line", "shown"),
    [
        ("p/a/a.proto", "message Twice { Nothing n = 1; }", 5, "Nothing n = 1"),
        ("p/a/a.proto", 'import "no.proto";', 5, "no.proto"),
        ("a.proto", "service A {", 5, "service A"),
    ],
)
def test_protos_that_do_not_compile_are_shown_where(
    tmp_path: Path, name: str, more: str, line: int, shown: str
) -> None:
    with pytest.raises(RefusedError) as caught:
        plan_of(written(tmp_path, {name: f"{proto('a', 'A')}\n{more}"}), "m")
    first = caught.value.findings[0]
    assert (first.path, first.line, first.code) == (name, line, "NM202")
    assert shown in first.source_line


def test_names_are_names() -> None:
    assert NAME.length_max == len(usable_name("y" * 1000))
