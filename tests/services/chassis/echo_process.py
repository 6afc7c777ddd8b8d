"""The echo service as a program: `python echo_process.py FOLDER`, where FOLDER holds the compiled stubs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

from services.chassis import run

if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    import echo_pb2
    import echo_pb2_grpc

    spec = importlib.util.spec_from_file_location("echo_conftest", Path(__file__).parent / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    conftest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conftest)
    run(conftest.make_definition(SimpleNamespace(pb2=echo_pb2, grpc=echo_pb2_grpc), []))
