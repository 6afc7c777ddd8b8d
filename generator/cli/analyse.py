"""What commands share: analyse the manifest, print findings, stop on errors."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import click

from generator.analysis import Analysis, Output, Overrides, check_manifest
from generator.cli.main import EXIT_FAILURE
from generator.manifest import Finding, Severity
from generator.model import Mesh

COLORS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}


def print_findings(findings: Iterable[Finding], *, err: bool = False) -> None:
    """Print findings in the order given, their first line coloured on a terminal."""
    for finding in findings:
        head, _, rest = str(finding).partition("\n")
        click.echo(click.style(head, fg=COLORS[finding.severity], bold=True), err=err)
        click.echo(rest, err=err)


def summary(findings: Iterable[Finding]) -> str:
    """For example `1 error, 0 warnings, 2 notes`."""
    severities = [finding.severity for finding in findings]
    counts = ((severity, severities.count(severity)) for severity in Severity)
    return ", ".join(f"{count} {severity.value}{'' if count == 1 else 's'}" for severity, count in counts)


def analysed(path: Path, overrides: Overrides | None = None, output: Output | None = None) -> tuple[Mesh, Analysis]:
    """Return the mesh of a sound manifest; otherwise print its findings to stderr and end with exit code 1."""
    analysis = check_manifest(path, overrides=overrides or Overrides(), output=output)
    if analysis.mesh is None:
        print_findings(analysis.findings, err=True)
        click.echo(f"{path}: {summary(analysis.findings)}", err=True)
        sys.exit(EXIT_FAILURE)
    return analysis.mesh, analysis
