"""`python -m services.storage copy FILE…`: move services from SQLite to the PostgreSQL database of NIPMESH_DATABASE_URL.

Each file goes into the schema that the service uses: `payment.sqlite3` into `payment`. Stop the services before, and start them with the
same NIPMESH_DATABASE_URL (or NIPMESH_DATABASE_URL_FILE) afterwards. Exit codes: 0 all copied and verified, 1 the server failed, 2 refused;
a file is copied as a whole or not at all.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import psycopg

from services.chassis.errors import StartError
from services.chassis.settings import ChassisSettings
from services.storage.copying import CopyRefusedError, copy_database
from services.storage.places import PostgresPlace, place_of


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m services.storage copy", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a service's SQLite file")
    files: list[Path] = parser.parse_args(arguments).files
    settings = ChassisSettings.load()
    try:
        return max(_copy(settings, file) for file in files)
    except StartError as error:
        return _failed(str(error), 2)


def _copy(settings: ChassisSettings, file: Path) -> int:
    """Copy one file and say what was copied."""
    target = place_of(settings, file.name)
    if not isinstance(target, PostgresPlace):
        return _failed("set NIPMESH_DATABASE_URL or NIPMESH_DATABASE_URL_FILE to where the state goes", 2)
    try:
        tables = copy_database(file, target)
    except CopyRefusedError as error:
        return _failed(f"{file}: {error}", 2)
    except psycopg.Error as error:
        return _failed(f"{file}: the database failed, nothing was copied: {' '.join(str(error).split())}", 1)
    for table in tables:
        sys.stdout.write(f"{target.schema}.{table.name}: {table.rows} rows, sha256 {table.sha256[:16]}\n")
    sys.stdout.write(
        f"{file} is copied into the schema {target.schema} and verified; keep the file until you trust it\n"
    )
    return 0


def _failed(message: str, code: int) -> int:
    sys.stderr.write(f"error: {message}\n")
    return code
