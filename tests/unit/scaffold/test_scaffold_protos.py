"""Where the imports of .proto files start: said by buf, by other files, by the package, or by the place."""

from __future__ import annotations

from pathlib import Path

import pytest

from generator.scaffold.protos import find_protos, import_roots

ORDER = 'package shop.orders.v1; import "shop/common.proto";'


def roots(base: Path, files: dict[str, str]) -> list[str]:
    for name, text in files.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(text)
    return [str(root) for root in import_roots(base, find_protos(base))]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({"a.proto": "package a;"}, ["."], id="its own folder"),
        pytest.param({"protos/a.proto": "package a;"}, ["protos"], id="a folder that no package names"),
        pytest.param({"a/a.proto": "package a;"}, ["."], id="a folder that the package names"),
        pytest.param({"api/shop/orders/v1/o.proto": "package shop.orders.v1;"}, ["api"], id="folders of a package"),
        pytest.param({"x/shop/o.proto": ORDER, "x/shop/common.proto": ""}, ["x"], id="the import of another file"),
        pytest.param(
            {"p/base.proto": "", "p/sub/o.proto": 'package other; import "base.proto";'}, ["p"], id="one in another"
        ),
        pytest.param({"a/x/v1/x.proto": "package x.v1;", "b/y/y.proto": "package y;"}, ["a", "b"], id="two trees"),
        pytest.param({"a.proto": '// import "b/a.proto";\n/* package b; */ package a;'}, ["."], id="comments"),
        pytest.param({"buf.yaml": "version: v1", "sub/a.proto": "package a;"}, ["."], id="buf.yaml v1"),
        pytest.param({"buf.yaml": "version: v2", "sub/a.proto": "package a;"}, ["."], id="buf.yaml v2, no modules"),
        pytest.param(
            {"buf.yaml": "version: v2\nmodules: [{path: sub}]", "sub/a/a.proto": "package b;"},
            ["sub"],
            id="buf.yaml v2",
        ),
        pytest.param(
            {"buf.work.yaml": "version: v1\ndirectories: [one, two]", "one/x/a.proto": "", "two/b.proto": ""},
            ["one", "two"],
            id="buf.work.yaml",
        ),
        pytest.param({"buf.yaml": "[no, mapping", "sub/a.proto": "package a;"}, ["sub"], id="broken buf.yaml"),
        pytest.param(
            {"buf.yaml": "version: v2\nmodules: [{path: ../..}, 7]", "sub/a.proto": "package a;"}, ["sub"], id="outside"
        ),
    ],
)
def test_roots(tmp_path: Path, files: dict[str, str], expected: list[str]) -> None:
    assert roots(tmp_path, files) == expected


def test_what_is_carried_along_counts_only_where_it_is_imported(tmp_path: Path) -> None:
    files = {
        "api/a.proto": 'package a; import "acme/money.proto"; import "google/api/http.proto";',
        "third_party/one/acme/money.proto": "package acme;",
        "third_party/two/acme/unused.proto": "package acme;",
        "vendor/google/api/http.proto": "package google.api;",
    }
    assert roots(tmp_path, files) == ["api", "third_party/one"], "nipmesh has google/api itself"


def test_what_tests_define_is_no_service(tmp_path: Path) -> None:
    assert roots(tmp_path, {"api/a.proto": "package a;", "tests/x.proto": "", "a/testdata/y.proto": ""}) == ["api"]
    protos = {str(proto.path): proto.is_others for proto in find_protos(tmp_path)}
    assert protos == {"a/testdata/y.proto": True, "api/a.proto": False, "tests/x.proto": True}


@pytest.mark.parametrize("folder", [".hidden", "node_modules", "env"])
def test_what_is_not_the_projects_own_is_passed_over(tmp_path: Path, folder: str) -> None:
    marker = {"env/pyvenv.cfg": ""} if folder == "env" else {}
    assert roots(tmp_path, {f"{folder}/x/a.proto": "", "b.proto": ""} | marker) == ["."]
    assert [str(proto.path) for proto in find_protos(tmp_path)] == ["b.proto"]
