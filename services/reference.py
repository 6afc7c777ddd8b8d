"""The generated parts of docs/services/*.md and docs/events.md.

`python -m services.reference` rewrites them, `--check` says whether they are up to date.

A page holds blocks between `<!-- generated: NAME -->` and `<!-- end -->`; all else is written by hand. Methods, errors and limits come
from the protos (comments included), who may call from the access tables, settings from the settings classes, states from the rules.
"""

from __future__ import annotations

import argparse
import difflib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from buf.validate import validate_pb2
from services.chassis.caller import Access
from services.chassis.errors import CODE_OF, Reason
from services.chassis.service import ServiceDefinition
from services.chassis.settings import settings_table
from services.events.catalogue import catalogue
from services.invoice.domain.transitions import TRANSITIONS, Event, Move, Refuse
from services.invoice.service import SERVICE as INVOICE
from services.nip.domain import life
from services.nip.domain.life import State as KeyState
from services.nip.errors import REFUSALS
from services.nip.service import NIP_SERVICE as NIP
from services.payment.domain.saga_words import CALL_SECONDS, STEP_LIMITS, Action, Step
from services.payment.service import SERVICE as PAYMENT

ROOT: Final = Path(__file__).resolve().parents[1]
PROTOS: Final = ROOT / "protos"
PAGES: Final = ROOT / "docs" / "services"
EVENTS_PAGE: Final = ROOT / "docs" / "events.md"
DEFINITIONS: Final[Mapping[str, ServiceDefinition[Any]]] = {"nip": NIP, "invoice": INVOICE, "payment": PAYMENT}
COMMON_REASONS: Final = frozenset(
    "REQUEST_INVALID NOT_AUTHENTICATED TOKEN_INVALID OPERATOR_REQUIRED CALLER_NOT_ALLOWED OVERLOADED SERVICE_DRAINING"  # noqa: SIM905
    " BACKEND_UNAVAILABLE STORAGE_FULL DEADLINE_EXCEEDED INTERNAL".split()
)
"""Reasons that every method may answer with; the protos do not repeat them."""
REPEATABLE: Final = {
    descriptor_pb2.MethodOptions.IDEMPOTENT: "same effect",
    descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS: "no effect",
}
_BLOCK: Final = re.compile(r"(<!-- generated: (?P<name>[a-z ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_REASONS: Final = re.compile(r"Errors: ([^.]+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """The files of one package, with the comment of each path in them."""

    files: tuple[FileDescriptorProto, ...]
    comments: Mapping[tuple[str, tuple[int, ...]], str]

    def comment(self, file: FileDescriptorProto, *path: int) -> str:
        """The words above a declaration, in one line."""
        return self.comments.get((file.name, path), "")


def read_api(*packages: str) -> Api:
    """Compile the protos of these packages (folders below protos/nipmesh) with their comments."""
    names = sorted(
        str(path.relative_to(PROTOS))
        for package in packages
        for path in (PROTOS / "nipmesh" / package).rglob("*.proto")
    )
    with tempfile.TemporaryDirectory() as folder:
        rules, out = Path(folder) / "rules.binpb", Path(folder) / "out.binpb"
        rules.write_bytes(_validation_rules().SerializeToString())
        command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTOS}", f"--descriptor_set_in={rules}"]
        subprocess.run([*command, "--include_source_info", f"--descriptor_set_out={out}", *names], check=True)
        files = tuple(FileDescriptorSet.FromString(out.read_bytes()).file)
    comments = {
        (file.name, tuple(location.path)): " ".join(location.leading_comments.split())
        for file in files
        for location in file.source_code_info.location
    }
    return Api(files=files, comments=comments)


def _validation_rules() -> FileDescriptorSet:
    """buf/validate/validate.proto and what it and our protos import of the well-known types."""
    found: dict[str, FileDescriptorProto] = {}

    def add(file: Any) -> None:
        if file.name not in found:
            found[file.name] = FileDescriptorProto.FromString(file.serialized_pb)
            for dependency in file.dependencies:
                add(dependency)

    add(validate_pb2.DESCRIPTOR)
    return FileDescriptorSet(file=found.values())


# ---- blocks


def methods(name: str) -> str:
    """Every method: who may call it, whether it may be repeated, and its own reasons."""
    api, definition = read_api(name), DEFINITIONS[name]
    rows = ["| method | who may call it | repeated | reasons of its own |", "|---|---|---|---|"]
    for full_name, method, comment in _methods(api):
        access = definition.access[full_name]
        repeated = REPEATABLE.get(method.options.idempotency_level, "**another effect**")
        stream = " (stream)" if method.server_streaming else ""
        own = ", ".join(f"`{reason}`" for reason in _reasons(comment)) or "-"
        rows.append(f"| `{full_name.split('.')[-1]}`{stream} | {_who(access)} | {repeated} | {own} |")
    return "\n".join(rows)


def errors(name: str) -> str:
    """Every reason that the service's methods name, with its code and what it means."""
    named = {reason for _, _, comment in _methods(read_api(name)) for reason in _reasons(comment)} | COMMON_REASONS
    meanings = _reason_meanings()
    rows = ["| reason | code | meaning |", "|---|---|---|"]
    rows += [f"| `{reason}` | `{CODE_OF[Reason(reason)].name}` | {meanings[reason]} |" for reason in sorted(named)]
    return "\n".join(rows)


def limits(name: str) -> str:
    """Every rule on a request's field, as its comment says it."""
    api = read_api(name)
    rows = ["| request | field | rule |", "|---|---|---|"]
    for file in api.files:
        for index, message in enumerate(file.message_type):
            if not message.name.endswith("Request"):
                continue
            for number, field in enumerate(message.field):
                comment = api.comment(file, 4, index, 2, number)
                rows.append(f"| `{message.name.removesuffix('Request')}` | `{field.name}` | {_cell(comment)} |")
    return "\n".join(rows)


def settings(name: str) -> str:
    """What the service is told by its environment, beyond what every service is told."""
    table = settings_table(DEFINITIONS[name].settings)
    return table if table.count("\n") > 1 else "None beyond those of every service."


def states(name: str) -> str:
    """Every enum called State or Reason that the service's messages have."""
    api = read_api(name)
    rows = ["| of | state | meaning |", "|---|---|---|"]
    for file in api.files:
        for index, message in enumerate(file.message_type):
            for number, enum in enumerate(message.enum_type):
                if enum.name not in ("State", "FailureReason"):
                    continue
                for value, state in enumerate(enum.value[1:], start=1):
                    comment = api.comment(file, 4, index, 4, number, 2, value)
                    rows.append(f"| {message.name} | `{state.name}` | {_cell(comment)} |")
    return "\n".join(rows)


def transitions(name: str) -> str:
    """What each event does to an invoice, or each action to a key, in each state: the table of the rules themselves."""
    if name == "nip":
        return _lives()
    assert name == "invoice", "only invoices and keys have their rules as a table"
    in_order = list(dict.fromkeys(state for state, _ in TRANSITIONS))
    rows = [f"| event | {' | '.join(state.name for state in in_order)} |", f"|---|{'---|' * len(in_order)}"]
    for event in Event:
        cells = [_outcome(TRANSITIONS[state, event]) for state in in_order]
        rows.append(f"| {event.value} | {' | '.join(cells)} |")
    return "\n".join(rows)


def steps(name: str) -> str:
    """The steps of a payment's saga with their limits."""
    assert name == "payment", "only payments are sagas"
    rows = ["| step | one attempt takes at most | the step takes at most | then |", "|---|---|---|---|"]
    for step, limit in STEP_LIMITS.items():
        call = {Step.AWAIT_DECISION: Action.LOOK}.get(step) or Action(step)
        rows.append(f"| `{step}` | {CALL_SECONDS[call]:g} s | {limit.seconds:g} s | {limit.then.value} |")
    return "\n".join(rows)


def event_types(name: str) -> str:
    """Every CloudEvents type with its message, its subject, and when it is recorded."""
    assert name == "events", "the types of all services stand on one page"
    rows = ["| type | payload | subject | when |", "|---|---|---|---|"]
    for entry in sorted(catalogue().values(), key=lambda each: (each.message, each.type)):
        message = entry.message.rpartition(".")[2]
        rows.append(f"| `{entry.type}` | `{message}` | {_cell(entry.subject)} | {_cell(entry.when)} |")
    return "\n".join(rows)


BLOCKS: Final[Mapping[str, Callable[[str], str]]] = {
    "event types": event_types,
    "methods": methods,
    "errors": errors,
    "limits": limits,
    "settings": settings,
    "states": states,
    "steps": steps,
    "transitions": transitions,
}


def _lives() -> str:
    """What each action does to a key in each state."""
    rows = [f"| action | {' | '.join(state.name for state in KeyState)} |", f"|---|{'---|' * len(KeyState)}"]
    for action, row in life.TABLE.items():
        rows.append(f"| {action.name} | {' | '.join(_fate(row[state]) for state in KeyState)} |")
    return "\n".join(rows)


def _fate(outcome: life.Outcome) -> str:
    """One cell of the table of keys' lives."""
    if isinstance(outcome, KeyState):
        return f"**{outcome.name}**"
    return f"`{REFUSALS[outcome][0]}`" if isinstance(outcome, life.Refusal) else "stays"


def _outcome(outcome: object) -> str:
    """One cell of the table of transitions."""
    if isinstance(outcome, Move):
        return f"**{outcome.to.name}**"
    return f"`{outcome.reason}`" if isinstance(outcome, Refuse) else "stays"


def _methods(api: Api) -> Iterator[tuple[str, descriptor_pb2.MethodDescriptorProto, str]]:
    """Full name, descriptor and comment of every method."""
    for file in api.files:
        for index, service in enumerate(file.service):
            for number, method in enumerate(service.method):
                full_name = f"/{file.package}.{service.name}/{method.name}"
                yield full_name, method, api.comment(file, 6, index, 2, number)


def _reasons(comment: str) -> list[str]:
    """The reasons that a method's comment names after "Errors:"."""
    words = (word for found in _REASONS.findall(comment) for word in re.findall(r"[A-Z][A-Z0-9_]{3,}", found))
    return [word for word in words if word in Reason.__members__]


def _reason_meanings() -> dict[str, str]:
    """Reason -> the words above it in error.proto, without the code."""
    api = read_api("common")
    (file,) = api.files
    (enum,) = file.enum_type
    return {
        value.name.removeprefix("ERROR_REASON_"): _cell(
            re.sub(r"^\[[A-Z_]+\] ", "", api.comment(file, 5, 0, 2, number))
        )
        for number, value in enumerate(enum.value)
    }


def _who(access: Access) -> str:
    """Who may call, in words."""
    ways = ["anybody"] if access.public else []
    ways += ["users"] if access.user else []
    ways += ["operators"] if access.operator else []
    ways += [f"the {service} service" for service in sorted(access.services)]
    return ", ".join(ways)


def _cell(text: str) -> str:
    """A text that does not break a table."""
    return text.replace("|", "\\|")


# ---- pages


def rendered(page: Path) -> str:
    """The page with every block made anew. Raises KeyError for a block of another name."""
    return _BLOCK.sub(lambda match: f"{match[1]}\n{BLOCKS[match['name']](page.stem)}\n\n{match[3]}", page.read_text())


def main() -> int:
    """Rewrite or check the pages."""
    parser = argparse.ArgumentParser(prog="python -m services.reference", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; 1 when a page is out of date")
    check = parser.parse_args().check
    stale = 0
    for page in (*sorted(PAGES.glob("*.md")), EVENTS_PAGE):
        before, after = page.read_text(), rendered(page)
        if before == after:
            continue
        stale += 1
        if check:
            sys.stdout.writelines(
                difflib.unified_diff(before.splitlines(True), after.splitlines(True), str(page), "generated")
            )
        else:
            page.write_text(after)
    return int(check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
