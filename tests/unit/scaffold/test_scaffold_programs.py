"""How a program is started, where its sources leave no doubt, and nothing where they do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from generator.scaffold.programs import Program, find_programs

NAMES = frozenset({"OrderService", "StockService", "Guide"})
PYTHON = "x_pb2_grpc.add_OrderServiceServicer_to_server(o, s)\n"
MAIN = PYTHON + "if __name__ == '__main__':\n    serve()\n"
GO = 'package main\nfunc main() { os.Getenv("PORT"); pb.RegisterOrderServiceServer(s, o) }\n'


def programs(base: Path, files: dict[str, str]) -> tuple[Program, ...]:
    for name, text in files.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(text)
    return find_programs(base, NAMES)


@pytest.mark.parametrize(
    ("files", "run", "cwd"),
    [
        pytest.param({"server.py": MAIN}, "python server.py", "", id="script"),
        pytest.param({"apps/server.py": MAIN}, "python apps/server.py", "", id="script in a folder"),
        pytest.param({"o/__init__.py": "", "o/__main__.py": PYTHON}, "python -m o", "", id="package"),
        pytest.param({"o/__main__.py": PYTHON}, "python -m o", "", id="package without __init__"),
        pytest.param(
            {"o/__init__.py": "", "o/__main__.py": "run()", "o/app.py": PYTHON}, "python -m o", "", id="module of a package"
        ),
        pytest.param({"o/__init__.py": "", "o/app.py": MAIN}, "python -m o.app", "", id="main block in a package"),
        pytest.param(
            {"src/o/__init__.py": "", "src/o/a/__init__.py": "", "src/o/a/s.py": MAIN}, "python -m o.a.s", "src", id="src"
        ),
        pytest.param({"go.mod": "", "main.go": GO}, "go run .", "", id="go"),
        pytest.param({"s/go.mod": "", "s/cmd/o/main.go": GO}, "go run ./cmd/o", "s", id="go command"),
        pytest.param(
            {"go.mod": "", "in/o.go": GO.replace("main", "in", 1), "cmd/a/main.go": "package main"},
            "go run ./cmd/a", "", id="go, the one command",
        ),
        pytest.param({"a.js": "s.addService(p.OrderService.service, {})"}, "node a.js", "", id="node"),
        pytest.param(
            {"n/package.json": '{"scripts": {"start": "node lib/a.js"}}', "n/lib/a.js": "s.addService(OrderServiceService, {})"},
            "node lib/a.js", "n", id="node, start script",
        ),
        pytest.param(
            {"package.json": '{"scripts": {"start": "tsx a.ts"}}', "a.ts": "s.addService(\n  Guide.service, {})"},
            "npm start", "", id="typescript",
        ),
    ],
)  # fmt: skip
def test_what_is_sure(tmp_path: Path, files: dict[str, str], run: str, cwd: str) -> None:
    (program,) = programs(tmp_path, files)
    assert (program.run, program.cwd) == (run, cwd)


@pytest.mark.parametrize(
    "files",
    [
        pytest.param({"server.py": PYTHON}, id="nothing starts it"),
        pytest.param({"test_server.py": MAIN}, id="a test"),
        pytest.param({"tests/fake.py": MAIN}, id="a folder of tests"),
        pytest.param({"x_pb2_grpc.py": MAIN}, id="generated"),
        pytest.param({"server.py": MAIN.replace("Order", "Other")}, id="serves something else"),
        pytest.param({"main.go": GO}, id="go without a module"),
        pytest.param(
            {"go.mod": "", "o.go": GO.replace("main", "o", 1), "a/m.go": "package main", "b/m.go": "package main"},
            id="two commands",
        ),
        pytest.param({"a.ts": "s.addService(p.OrderService.service, {})"}, id="typescript without a start"),
        pytest.param({"package.json": "[]", "a.ts": "s.addService(Guide.service)"}, id="a strange package.json"),
        pytest.param({"node_modules/a.js": "s.addService(p.OrderService.service, {})"}, id="somebody else's"),
        pytest.param({"server.py": MAIN + "#" * 1024 * 1024}, id="too large to be written by hand"),
    ],
)
def test_what_is_not_sure_is_not_said(tmp_path: Path, files: dict[str, str]) -> None:
    assert programs(tmp_path, files) == ()


def test_what_the_source_shows(tmp_path: Path) -> None:
    text = (
        MAIN + "StockServiceStub(c); OtherStub(c); NewGuideClient(c)\nos.environ['NIPMESH_LISTEN']; from grpc_health.v1"
    )
    (program,) = programs(tmp_path, {"s.py": text})
    assert program.serves == {"OrderService"}
    assert program.calls == {"StockService", "Guide"}
    assert (program.reads_listen, program.reads_port, program.answers_health) == (True, False, True)


def test_a_project_with_an_environment_of_its_own_runs_in_that(tmp_path: Path) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (script,) = programs(tmp_path, {"server.py": MAIN})
    assert script.run == ".venv/bin/python server.py"
    (script, package) = programs(tmp_path, {"src/o/__init__.py": "", "src/o/a.py": MAIN})
    assert (package.run, package.cwd) == ("../.venv/bin/python -m o.a", "src")
