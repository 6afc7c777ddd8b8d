"""A page that shows a project grow: its files and commands, in its order, as one script. A test and a benchmark run it."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "five-minutes.md"
_BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def steps(page: Path = PAGE) -> list[tuple[str, str]]:
    """(file, its content) for what is to be saved, ("", commands) for what is to be typed; what is only shown is left out."""
    blocks = _BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(name, body) for kind, name, body in blocks if name or kind == "sh"]


def script(parts: list[tuple[str, str]], *, gateway: str, tcp: str) -> str:
    """Write the files and type the commands, with a gateway and a first replica elsewhere than at the ports that the page names."""
    text = "\n".join(_saved(name, body) if name else body for name, body in parts)
    moved = f"nipmesh init\nsed -i 's/127.0.0.1:8080/{gateway}/' mesh.yaml\n"
    text = text.replace("127.0.0.1:8080", gateway).replace("127.0.0.1:50051", tcp)
    return text.replace("nipmesh init\n", moved)


def _saved(name: str, body: str) -> str:
    folder = name.rpartition("/")[0] or "."
    return f"mkdir -p {folder}\ncat > {name} <<'END_OF_FILE'\n{body}END_OF_FILE\n"
