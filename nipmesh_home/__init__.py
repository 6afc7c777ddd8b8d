"""Where nipmesh's own packages live, and the way into them that nobody's folders can block.

The wheel carries `generator` and `services` inside this package; a checkout has them beside it. Names as common as these
would collide at the top of somebody's environment with packages of their own. So no program of theirs ever sees ours, and
ours are found first here, whatever the working folder and PYTHONPATH hold. This module imports nothing of either package
before it is asked to: it is what every start goes through.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE if (HERE / "generator").is_dir() else HERE.parent
"""The folder that holds `generator` and `services`."""
USAGE = "usage: python -m nipmesh_home MODULE [ARGUMENT]…"
EXIT_USAGE = 2


def main() -> None:
    """Run the `nipmesh` command."""
    claim()
    from generator.cli.main import main as command

    command(prog_name="nipmesh")


def claim() -> None:
    """Put our packages in front of everything else in this process."""
    sys.path.insert(0, str(ROOT))


def run() -> None:
    """Run the module that the first argument names, e.g. `services.payment`, with the arguments after it."""
    if len(sys.argv) < 2:
        sys.stderr.write(USAGE + "\n")
        sys.exit(EXIT_USAGE)
    claim()
    module = sys.argv.pop(1)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def module_command(module: str) -> tuple[str, ...]:
    """Give the command that runs one of our modules from any folder: `-P` keeps that folder out of Python's path."""
    return (sys.executable, "-P", "-m", "nipmesh_home", module)
