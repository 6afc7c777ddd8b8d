"""From a mesh to resources and to Envoy's opinion of them, for the commands that run nothing.

What goes wrong here is a fault of nipmesh or of its installation, not of the manifest's author; it is told as findings
all the same, at the top of the manifest.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click

from generator.cli.analyse import print_findings
from generator.cli.main import EXIT_FAILURE
from generator.manifest import Finding
from generator.manifest.finding import START, Reporter
from generator.model import Mesh
from generator.outputs.files import default_placement, validate_with_envoy
from generator.outputs.local.binary import EnvoyNotFoundError
from generator.render import render
from generator.resources import DescriptorsMissingError, ResourceError, ResourceSet

OUR_FAULT = "report this with the manifest: what nipmesh writes must be right for every manifest without an error"
INSTALL = "install nipmesh again; `nipmesh doctor` looks at this machine"
VALIDATION_DIRECTORY = Path("/run/nipmesh/check")
"""Stands in the paths of what `check` renders; nothing is written there."""


def rendered(mesh: Mesh, manifest: Path, directory: Path) -> ResourceSet:
    """Render with the default placement; where that fails, print findings and end with exit code 1."""
    reporter = Reporter(path=str(manifest), lines=())
    try:
        return render(mesh, default_placement(mesh, directory))
    except ResourceError as error:
        for problem in error.problems:
            reporter.report("NM702", START, "cannot render", cause=str(problem), fix=OUR_FAULT)
    except DescriptorsMissingError as error:
        reporter.report("NM702", START, "cannot render", cause=str(error), fix=INSTALL)
    except ValueError as error:
        reporter.report("NM702", START, "cannot place the mesh", cause=str(error), fix="use fewer replicas")
    print_findings(reporter.sorted(), err=True)
    sys.exit(EXIT_FAILURE)


def accepted_workloads(mesh: Mesh, manifest: Path) -> int | None:
    """Count the workloads whose configuration Envoy accepts; None, after printing findings, when it refuses one."""
    resources = rendered(mesh, manifest, VALIDATION_DIRECTORY)
    findings = refusals(resources, manifest)
    print_findings(findings)
    if findings:
        click.echo(f"{manifest}: Envoy refuses the configuration")
        return None
    return len(resources.workloads)


def refusals(resources: ResourceSet, manifest: Path) -> tuple[Finding, ...]:
    """Collect everything that Envoy says against the configuration, as findings."""
    reporter = Reporter(path=str(manifest), lines=())
    try:
        for refusal in validate_with_envoy(resources):
            message = f"Envoy refuses {refusal.resource or 'the bootstrap'} of {refusal.workload}"
            reporter.report("NM701", START, message, cause=refusal.message, fix=OUR_FAULT)
    except EnvoyNotFoundError as error:
        reporter.report("NM703", START, "Envoy is missing", cause=str(error), fix=INSTALL)
    except subprocess.TimeoutExpired as error:
        cause = f"it did not answer within {error.timeout:.0f} s"
        reporter.report("NM703", START, "Envoy hangs", cause=cause, fix="try again when the machine is idle")
    except OSError as error:
        reporter.report("NM703", START, "Envoy does not start", cause=str(error), fix=INSTALL)
    return reporter.sorted()
