"""What a shell completes: names out of the manifest. Never an error or a word of ours: a prompt is no place for either."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from generator.cli.main import MANIFEST_NAME

GATEWAY_LOG, SUPERVISOR_LOG = "gateway", "supervisor"


def service_names(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """The services of the manifest, also of one that is not sound yet."""
    return _beginning(_services(_manifest(ctx)), incomplete)


def log_names(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """The same and what else has logs."""
    return _beginning([*_services(_manifest(ctx)), GATEWAY_LOG, SUPERVISOR_LOG], incomplete)


def subjects(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Services; behind a slash the methods of one, for which its protobufs are compiled."""
    if "/" not in incomplete:
        return _beginning(_services(_manifest(ctx)), incomplete)
    from generator.analysis import check_manifest

    mesh = check_manifest(_manifest(ctx)).mesh
    services = mesh.services if mesh is not None else ()
    methods = (
        f"{service.name}/{method.service.rpartition('.')[2]}/{method.name}"
        for service in services
        for method in service.methods
    )
    return _beginning(methods, incomplete)


def _manifest(ctx: click.Context) -> Path:
    return Path(ctx.find_root().params.get("manifest") or MANIFEST_NAME)


def _services(path: Path) -> list[str]:
    from generator.manifest import load_manifest

    manifest = load_manifest(path).manifest
    return [entry.key.value for entry in manifest.services] if manifest is not None else []


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return sorted(name for name in set(names) if name.startswith(incomplete))
