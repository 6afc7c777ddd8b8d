"""Lints the project's own protos with buf: `python -m generator.catalog.lint`.

buf reads an image, because the validation rules' `.proto` is in no package here: only their descriptor is.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from generator.catalog.build_hook import DATA_DIRECTORY, protoc

ROOT = Path(__file__).resolve().parents[2]


def lint(root: Path) -> int:
    """Print what buf finds in `root/protos`; 0 when that is nothing."""
    protos = root / "protos"
    names = sorted(str(path.relative_to(protos)) for path in (protos / "nipmesh").rglob("*.proto"))
    buf = str(Path(sys.executable).parent / "buf")
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.binpb"
        options = ["--include_imports", "--include_source_info", f"--descriptor_set_out={image}"]
        protoc(protos, root / DATA_DIRECTORY / "validate.binpb", [*options, *names])
        rules = subprocess.run([buf, "lint", str(image), "--config", str(protos / "buf.yaml")], check=False)
    form = subprocess.run([buf, "format", "-d", "--exit-code", str(protos)], check=False)
    return rules.returncode or form.returncode


if __name__ == "__main__":
    sys.exit(lint(ROOT))
