"""Checks of what services are given: files and environment variables."""

from __future__ import annotations

import re
import stat
from pathlib import Path

from generator.manifest.finding import Reporter, printable, quoted
from generator.manifest.types import Manifest, ServiceEntry
from generator.manifest.values import Entry, Located

EXTERNAL_PREFIX = "NIPMESH_EXTERNAL_"
"""What begins the name of the variable of an external host's socket."""
RESERVED_VARIABLES = frozenset(
    [
        "PORT",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_SERVICE_NAME",
        "NIPMESH_MESH",
        "NIPMESH_SERVICE",
        "NIPMESH_VERSION",
        "NIPMESH_REPLICA",
        "NIPMESH_TRUST_DOMAIN",
        "NIPMESH_AUTHORITY",
        "NIPMESH_GATEWAY_IDENTITY",
        "NIPMESH_GATEWAY_URL",
        "NIPMESH_DRAIN_GRACE",
        "NIPMESH_LISTEN",
        "NIPMESH_METRICS_LISTEN",
        "NIPMESH_EGRESS",
        "NIPMESH_DATA_DIRECTORY",
        "NIPMESH_REFLECTION",
        "NIPMESH_LOG_LEVEL",
        "NIPMESH_CLAIM_HEADERS",
        "NIPMESH_EVENTS_URL",
        "NIPMESH_EVENTS_CREDENTIALS_FILE",
        "NIPMESH_EVENTS_CA_FILE",
        "NIPMESH_EVENTS_STREAM",
        "NIPMESH_EVENTS_INBOX",
        "NIPMESH_TOKEN_KEY_FILE",
        "NIPMESH_TOKEN_ISSUER",
        "NIPMESH_TOKEN_AUDIENCE",
        "NIPMESH_TOKEN_LIFETIME",
    ]
)
"""What the outputs set. Everything else is the program's own, also when its name begins with NIPMESH_: where its database is, say."""
"""Set by nipmesh for every process."""
ENVIRONMENT_FILE_BYTES_MAX = 1024 * 1024
"""Linux passes at most about 2 MiB of arguments and environment to a process."""
GENERATE = "or let the mesh make one: `{generate: 32}` instead of a path"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_services_files(manifest: Manifest, base: Path, reporter: Reporter) -> None:
    """Files exist and secrets are private; variables are free and set once."""
    for entry in manifest.services:
        where = f"services.{entry.key.value}"
        if check_file(entry.value.env_file, base, f"{where}.env_file", reporter):
            _check_environment_file(entry.value.env_file, base, f"{where}.env_file", reporter)
        _check_folder(entry.value.cwd, base, f"{where}.cwd", reporter)
        for secret in entry.value.secrets:
            if isinstance(secret.value, Located):
                _check_secret(secret.value, base, f"{where}.secrets.{secret.key.value}", reporter)
        _check_variables(entry, reporter)


def _check_secret(written: Located[str], base: Path, where: str, reporter: Reporter) -> None:
    is_there = check_file(written, base, where, reporter, private=True, otherwise=GENERATE)
    if is_there and (base / written.value).stat().st_size == 0:
        cause = f"{printable(str(base / written.value))} holds nothing"
        fix = f"write the secret into it; {GENERATE}"
        reporter.warn("NM607", written.position, f"{where}: empty secret", cause=cause, fix=fix)


def check_file(
    written: Located[str] | None,
    base: Path,
    where: str,
    reporter: Reporter,
    *,
    private: bool = False,
    otherwise: str = "",
) -> bool:
    """Whether the file is there; a private one that others may read is a warning. `otherwise`: what helps without a file."""
    if written is None:
        return False
    path = base / written.value
    try:
        status = path.stat()
    except OSError as error:
        cause = f"{printable(str(path))}: {error.strerror}"
        message = f"{where}: {quoted(written.value)} cannot be read"
        fix = f"create it, or correct the path{f'; {otherwise}' if otherwise else ''}"
        reporter.report("NM601", written.position, message, cause=cause, fix=fix)
        return False
    if not stat.S_ISREG(status.st_mode):
        cause = f"{printable(str(path))} is no regular file"
        reporter.report("NM601", written.position, f"{where}: not a file", cause=cause, fix="name a file")
        return False
    if private and status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        cause = f"its mode is {stat.S_IMODE(status.st_mode):04o}: others on this machine can use it"
        fix = f"chmod 600 {printable(written.value)}"
        reporter.warn("NM602", written.position, f"{where}: secret readable by others", cause=cause, fix=fix)
    return True


def _check_environment_file(written: Located[str] | None, base: Path, where: str, reporter: Reporter) -> None:
    if written is None:
        return
    problem = environment_file_problem(base / written.value)
    if problem is not None:
        message = f"{where}: {quoted(written.value)} cannot be used"
        reporter.report("NM605", written.position, message, cause=problem, fix="write NAME=value lines and # comments")


def environment_file_problem(path: Path) -> str | None:
    """Say what is wrong with a file of NAME=value lines, without showing one: they may hold secrets."""
    try:
        with path.open("rb") as file:
            raw = file.read(ENVIRONMENT_FILE_BYTES_MAX + 1)
        lines = raw.decode("utf-8").splitlines()
    except OSError as error:
        return f"reading it failed: {error.strerror}"
    except UnicodeDecodeError:
        return "it is not UTF-8 text"
    if len(raw) > ENVIRONMENT_FILE_BYTES_MAX:
        return f"it is larger than {ENVIRONMENT_FILE_BYTES_MAX} bytes"
    for number, line in enumerate(lines, start=1):
        text = line.strip().removeprefix("export ")
        name, separator, _ = text.partition("=")
        if text and not text.startswith("#") and not (separator and _VARIABLE.fullmatch(name.strip())):
            return f"line {number} is not NAME=value"
        if "\0" in text or is_reserved(name.strip()):
            return f"line {number} sets a variable that nipmesh sets itself, or holds a zero byte"
    return None


def is_reserved(variable: str) -> bool:
    """Whether nipmesh sets this variable for every process."""
    return variable.startswith(EXTERNAL_PREFIX) or variable in RESERVED_VARIABLES


def _check_folder(written: Located[str] | None, base: Path, where: str, reporter: Reporter) -> None:
    if written is None or (base / written.value).is_dir():
        return
    cause = f"{printable(str(base / written.value))} is not a folder"
    message = f"{where}: {quoted(written.value)} is not there"
    reporter.report("NM601", written.position, message, cause=cause, fix="create it, or correct the path")


def _check_variables(entry: Entry[ServiceEntry], reporter: Reporter) -> None:
    seen: dict[str, int] = {}
    keys = [variable.key for variable in entry.value.env] + [secret.key for secret in entry.value.secrets]
    for key in keys:
        if is_reserved(key.value):
            cause = "nipmesh sets it for every process"
            fix = "choose another name"
            reporter.report("NM603", key.position, f"{quoted(key.value)} is reserved", cause=cause, fix=fix)
        if key.value in seen:
            cause = f"`env` sets it on line {seen[key.value]}"
            fix = "keep it in `secrets` only"
            reporter.report("NM604", key.position, f"{quoted(key.value)} is set twice", cause=cause, fix=fix)
        seen[key.value] = key.position.line
