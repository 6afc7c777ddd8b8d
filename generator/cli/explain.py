"""`nipmesh explain`: every computed setting with its reason."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from itertools import groupby

import click

from generator.cli.analyse import analysed
from generator.cli.main import EXIT_FAILURE, Invocation
from generator.cli.names import subjects
from generator.manifest.finding import did_you_mean, quoted
from generator.model.recording import Decision


@click.command()
@click.argument("subject", required=False, metavar="[SERVICE[/METHOD]]", shell_complete=subjects)
@click.pass_obj
def command(invocation: Invocation, subject: str | None) -> None:
    """Print each computed setting with its reason.

    SERVICE shows one service with its methods; SERVICE/METHOD one method, e.g. `orders/GetOrder` or
    `orders/OrderService/GetOrder`.
    """
    _, analysis = analysed(invocation.manifest)
    chosen = [decision for decision in analysis.decisions if subject is None or concerns(decision, subject)]
    if subject is not None and not chosen:
        fix = did_you_mean(subject, spellings(analysis.decisions), what="service")
        click.echo(f"nothing is called {quoted(subject)}: {fix}", err=True)
        sys.exit(EXIT_FAILURE)
    click.echo(table(chosen), nl=False)


def concerns(decision: Decision, subject: str) -> bool:
    """Whether a decision is about the subject, which may leave out package and protobuf service, or about an edge of it."""
    service, _, method = subject.partition("/")
    owner, _, path = decision.subject.partition("/")
    if service not in re.split(" -> | <- ", owner):
        return False
    return not method or path == method or path.endswith((f"/{method}", f".{method}"))


def spellings(decisions: Iterable[Decision]) -> set[str]:
    """Subjects as a user would write them: `orders`, `orders/GetOrder`."""
    parts = (decision.subject.split("/") for decision in decisions)
    return {part[0] if len(part) == 1 else f"{part[0]}/{part[-1]}" for part in parts}


def table(decisions: Iterable[Decision]) -> str:
    """Aligned text, one block per subject in the order of the decisions."""
    blocks = []
    listed = sorted(decisions, key=lambda decision: decision.subject)
    setting_width = max((len(decision.setting) for decision in listed), default=0)
    value_width = max((len(decision.value) for decision in listed), default=0)
    for subject, group in groupby(listed, key=lambda decision: decision.subject):
        rows = [f"  {row.setting:{setting_width}}  {row.value:{value_width}}  {row.reason}" for row in group]
        blocks.append("\n".join([subject, *rows]) + "\n")
    return "\n".join(blocks)
