"""Is every millisatoshi where the ledger says, and is the ledger what it was? `python -m services.payment verify` answers."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import apsw
import psycopg

from services.chassis.errors import StartError
from services.chassis.secret import SecretBytes
from services.chassis.settings import load_settings
from services.payment.domain.chain import HASH_BYTES, Head
from services.payment.service import FILE_NAME
from services.payment.settings import PaymentSettings
from services.payment.store.chaining import NOTE
from services.payment.verification.credits import check_credits
from services.payment.verification.ledger import check_ledger
from services.payment.verification.outbox import check_outbox
from services.payment.verification.payments import check_payments
from services.payment.verification.report import Report
from services.payment.verification.snapshot import snapshot
from services.storage.places import SCHEMES, Place, PostgresPlace, place_of, schema_of
from services.storage.postgresql.connection import LostError
from services.storage.sql import Connection, value_of

SOUND, VIOLATED, UNREADABLE = 0, 1, 2
"""Exit codes."""
_HEAD: Final = re.compile(rf"([0-9]{{1,18}}):([0-9a-f]{{{2 * HASH_BYTES}}})\Z")


class CannotVerifyError(Exception):
    """There is nothing that could be verified; the text says why and what to do."""


def verify(connection: Connection, noted: Head | None = None) -> Report:
    """Check everything. Raises CannotVerifyError for a database that has no chain yet."""
    _check_chained(connection)
    report = Report()
    check_ledger(connection, report, noted)
    check_payments(connection, report)
    check_credits(connection, report)
    check_outbox(connection, report)
    return report


def _check_chained(connection: Connection) -> None:
    applied = value_of(
        connection.execute(
            "SELECT max(number) FROM storage_migration WHERE component = 'service' AND name = 'ledger_chain'"
        )
    )
    waiting = value_of(connection.execute("SELECT value FROM memory WHERE name = ?", (NOTE,)))
    if applied is None or waiting is not None:
        raise CannotVerifyError("the ledger is not chained yet: start the payment service on it once")


def main(arguments: Sequence[str]) -> int:
    """Run the command; its exit code: 0 all is well, 1 a rule is broken, 2 it could not be checked."""
    options = _parser().parse_args(arguments)
    try:
        noted = _head(options.head)
        with snapshot(_place(options.database)) as connection:
            report = verify(connection, noted)
    except (CannotVerifyError, StartError, apsw.Error, psycopg.Error, LostError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return UNREADABLE
    sys.stdout.write(_json(report) if options.output == "json" else _text(report))
    return VIOLATED if report.violation_count else SOUND


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.payment verify", description=__doc__)
    parser.add_argument(
        "--database",
        help="a file of a running service or a copy of it, or the URL of a PostgreSQL database; else what NIPMESH_DATABASE_URL,"
        " NIPMESH_DATABASE_URL_FILE or NIPMESH_DATA_DIRECTORY says, as for the service",
    )
    parser.add_argument("--head", help="NUMBER:HASH as printed before: the ledger must still have that entry")
    parser.add_argument("--output", choices=("text", "json"), default="text")
    return parser


def _place(database: str | None) -> Place:
    """Where to look: what the command line says, else where the service of this environment keeps its state."""
    if database is not None and database.startswith(SCHEMES):
        return PostgresPlace(url=SecretBytes(database.encode()), schema=schema_of(FILE_NAME))
    place = place_of(load_settings(PaymentSettings), FILE_NAME) if database is None else Path(database)
    if isinstance(place, Path) and not place.is_file():
        raise CannotVerifyError(f"there is no file {place}")
    return place


def _head(text: str | None) -> Head | None:
    if text is None:
        return None
    match = _HEAD.match(text)
    if match is None:
        raise CannotVerifyError("--head is NUMBER:HASH, the hash in 64 lower-case hex digits")
    return Head(number=int(match[1]), sha256=bytes.fromhex(match[2]))


def _json(report: Report) -> str:
    violations = [{"rule": one.rule, "ids": list(one.ids), "meaning": one.meaning} for one in report.violations]
    answer = {
        "sound": report.violation_count == 0,
        "head": str(report.head),
        "checked": dict(report.checked),
        "violation_count": report.violation_count,
        "violations": violations,
    }
    return json.dumps(answer, indent=2) + "\n"


def _text(report: Report) -> str:
    lines = [f"{count:>12,} {what}" for what, count in report.checked.items()]
    lines += [str(violation) for violation in report.violations]
    if report.violation_count > len(report.violations):
        lines.append(f"and {report.violation_count - len(report.violations):,} more")
    lines.append(f"head {report.head}")
    lines.append(f"{report.violation_count:,} violations" if report.violation_count else "sound: no violation")
    return "\n".join(lines) + "\n"
