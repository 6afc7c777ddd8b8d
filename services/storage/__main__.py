"""`python -m services.storage COMMAND`: backup (services.storage.backup), copy to PostgreSQL (services.storage.copy_command)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from services.storage import backup, copy_command

COMMANDS: Final[Mapping[str, Callable[[Sequence[str]], int]]] = {
    "backup": backup.main,
    "copy": copy_command.main,
}

if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        raise SystemExit(COMMANDS[sys.argv[1]](sys.argv[2:]))
    sys.stderr.write(f"usage: python -m services.storage {{{','.join(COMMANDS)}}} …\n")
    raise SystemExit(2)
