"""Lints the project's own protos with buf: `python -m generator.catalog.lint`. Those of others are only formatted.

buf reads an image, because the validation rules' `.proto` is in no package here: only their descriptor is.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from generator.catalog.build_hook import DATA_DIRECTORY, FOREIGN_PROTOS, protoc

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
    forms = [
        subprocess.run([buf, "format", "-d", "--exit-code", str(folder)], check=False)
        for folder in (protos, root / FOREIGN_PROTOS)
    ]
    return rules.returncode or max(form.returncode for form in forms)


if __name__ == "__main__":
    sys.exit(lint(ROOT))
