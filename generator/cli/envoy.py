"""From a mesh to resources and to Envoy's opinion of them, for the commands that run nothing.

What goes wrong here is a fault of nipmesh or of its installation, not of the manifest's author; it is told as findings
all the same, at the top of the manifest.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import click
from cryptography.hazmat.primitives.asymmetric import ec

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
        return render(mesh, default_placement(mesh, directory, jwks=key_set(mesh)))
    except ResourceError as error:
        for problem in error.problems:
            reporter.report("NM702", START, "cannot render", cause=str(problem), fix=OUR_FAULT)
    except DescriptorsMissingError as error:
        reporter.report("NM702", START, "cannot render", cause=str(error), fix=INSTALL)
    except ValueError as error:
        reporter.report("NM702", START, "cannot place the mesh", cause=str(error), fix="use fewer replicas")
    print_findings(reporter.sorted(), err=True)
    sys.exit(EXIT_FAILURE)


def key_set(mesh: Mesh) -> str | None:
    """Give a foreign issuer's key set; an own issuer's keys exist only where the mesh runs: then one of nobody."""
    authentication = mesh.gateway.authentication if mesh.gateway else None
    if authentication is None:
        return None
    if authentication.jwks_file is not None:
        return authentication.jwks_file.read_text(encoding="utf-8")
    return nobodys_key_set()


def nobodys_key_set() -> str:
    """Make a key set with one P-256 key whose private half nobody knows: its x is a hash. It verifies no token.

    Envoy refuses an empty set. The same bytes every time: a rendered mesh depends on its manifest only.
    """
    for counter in range(256):
        x = hashlib.sha256(f"nipmesh: a token key of nobody, {counter}".encode()).digest()
        try:
            point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x02" + x)
        except ValueError:
            continue  # half of all x are on no point of the curve
        numbers = point.public_numbers()
        members = {name: base64url(value) for name, value in (("x", numbers.x), ("y", numbers.y))}
        return json.dumps({"keys": [{"kty": "EC", "crv": "P-256", "alg": "ES256", "kid": "nobody", **members}]})
    raise AssertionError("256 hashes in a row are on no point of the curve")


def base64url(value: int) -> str:
    """Write a coordinate as RFC 7518 wants it: 32 bytes, URL-safe, without padding."""
    return base64.urlsafe_b64encode(value.to_bytes(32, "big")).rstrip(b"=").decode("ascii")


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
