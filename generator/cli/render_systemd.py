"""`nipmesh render --target systemd`: every file of a machine whose systemd runs the mesh."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from generator.cli.analyse import print_findings
from generator.cli.envoy import INSTALL, OUR_FAULT
from generator.cli.main import EXIT_FAILURE
from generator.manifest.finding import START, Reporter
from generator.model import Mesh

if TYPE_CHECKING:
    from generator.outputs.systemd import Hosts, Layout, Programs, PublicKeys

SYSTEMD_DIRECTORY = Path(".nipmesh") / "systemd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the options said."""

    hosts: Path | None
    host: str | None
    programs: Path | None
    root: Path
    signer: str | None
    leave: tuple[str, ...]


def write_systemd(mesh: Mesh, manifest: Path, output: Path | None, asked: Asked) -> None:
    """Write what changed and print it; without keys on this machine say what that means."""
    from generator.outputs.systemd import Layout, PublicKeys

    reporter = Reporter(path=str(manifest), lines=())
    project = manifest.absolute().parent
    hosts = _hosts(mesh, asked)
    _check_leaving(mesh, asked.leave)
    layout = Layout(project=project, programs=_programs(asked.programs), root=asked.root)
    _check_sockets(mesh, layout, reporter)
    directory = (output or project / SYSTEMD_DIRECTORY).absolute()
    keys, changed = _written(mesh, layout, hosts, asked, directory, reporter)
    print_findings(reporter.sorted(), err=True)
    if reporter.has_errors:
        sys.exit(EXIT_FAILURE)
    for path in changed:
        click.echo(path)
    click.echo(f"{len(changed)} files written to {directory}", err=True)
    if keys == PublicKeys() and _needs_keys(mesh):
        click.echo(
            f"there are no keys in {layout.state} yet: no token passes and no service may publish events until they are made"
            " (`nipmesh secrets`) and this is rendered again",
            err=True,
        )


def _written(
    mesh: Mesh, layout: Layout, hosts: Hosts | None, asked: Asked, directory: Path, reporter: Reporter
) -> tuple[PublicKeys, list[Path]]:
    """The keys that were there, and what changed; nothing is written after a finding that is an error."""
    from generator.outputs.systemd import PublicKeys, machine_of, public_keys, write_tree
    from generator.pki import DamagedFileError
    from generator.resources import DescriptorsMissingError, ResourceError

    try:
        keys = public_keys(mesh, layout)
        machine = replace(machine_of(mesh, layout, hosts, asked.host, keys), signer=asked.signer).without(asked.leave)
        return keys, [] if reporter.has_errors else write_tree(machine, keys, directory)
    except ResourceError as error:
        for problem in error.problems:
            reporter.report("NM702", START, "cannot render", cause=str(problem), fix=OUR_FAULT)
    except DescriptorsMissingError as error:
        reporter.report("NM702", START, "cannot render", cause=str(error), fix=INSTALL)
    except (DamagedFileError, OSError) as error:
        reporter.report("NM702", START, "cannot render", cause=str(error), fix="mend what the cause names")
    except ValueError as error:
        reporter.report("NM702", START, "cannot place the mesh", cause=str(error), fix="use fewer replicas")
    return PublicKeys(), []


def _check_sockets(mesh: Mesh, layout: Layout, reporter: Reporter) -> None:
    from generator.outputs.local.paths import SOCKET_PATH_BYTES_MAX, longest_socket_path

    for service in mesh.services:
        length = longest_socket_path(layout.sockets, f"{service.name}-99", service.external_connections)
        if length > SOCKET_PATH_BYTES_MAX:
            cause = f"the sockets of {service.name} would have {length} bytes, Linux allows {SOCKET_PATH_BYTES_MAX}"
            reporter.report("NM702", START, "paths are too long", cause=cause, fix="choose a shorter --root or name")


def _needs_keys(mesh: Mesh) -> bool:
    authentication = None if mesh.gateway is None else mesh.gateway.authentication
    issues = authentication is not None and authentication.issuer_service is not None
    return issues or (mesh.events is not None and mesh.events.cluster is None)


def _hosts(mesh: Mesh, asked: Asked) -> Hosts | None:
    """The machines; ends when the file is wrong or has no such machine."""
    from generator.outputs.systemd import load_hosts

    if (asked.hosts is None) != (asked.host is None):
        raise click.UsageError("--hosts and --host go together")
    if asked.hosts is None or asked.host is None:
        return None
    hosts, findings = load_hosts(asked.hosts, mesh)
    print_findings(findings, err=True)
    if hosts is None:
        sys.exit(EXIT_FAILURE)
    if asked.host not in hosts.runs:
        raise click.BadParameter(f"{asked.hosts} has: {', '.join(hosts.runs)}", param_hint="--host")
    return hosts


def _check_leaving(mesh: Mesh, leave: tuple[str, ...]) -> None:
    known = [f"{service.name}-{index}" for service in mesh.services for index in range(service.replicas)]
    for name in leave:
        if name not in known:
            raise click.BadParameter(f"{name} is none of: {', '.join(known)}", param_hint="--leave")


def _programs(directory: Path | None) -> Programs:
    """Those of the folder that was named, or else those that run here."""
    import shutil

    from generator.outputs.local.binary import EnvoyNotFoundError, NatsNotFoundError, find_envoy, find_nats
    from generator.outputs.systemd import Programs

    if directory is not None:
        return Programs.below(directory)
    folder = Path(sys.executable).parent
    try:
        envoy = find_envoy()
    except EnvoyNotFoundError:
        envoy = folder / "envoy"
    try:
        nats = find_nats()
    except NatsNotFoundError:
        nats = folder / "nats-server"
    beside = folder / "nipmesh"
    found = shutil.which("nipmesh")
    nipmesh = beside if beside.exists() or found is None else Path(found)
    behind = (Path(sys.base_prefix),)
    return Programs(python=Path(sys.executable), nipmesh=nipmesh.absolute(), envoy=envoy, nats=nats, needed=behind)
