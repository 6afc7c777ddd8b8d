"""`nipmesh descriptors`: what clients of the gateway generate stubs from, without any of the services' sources."""

from __future__ import annotations

from pathlib import Path

import click
from google.protobuf import descriptor_pb2

from generator.cli.analyse import analysed
from generator.cli.main import Invocation
from generator.introspection.descriptors import cut_down
from generator.model import Gateway


def exposed_methods(gateway: Gateway) -> dict[str, frozenset[str]]:
    """Full name of each exposed protobuf service to its exposed methods."""
    methods = [policy.method for edge in gateway.exposes for policy in edge.methods]
    names = {method.service for method in methods}
    return {name: frozenset(method.name for method in methods if method.service == name) for name in names}


@click.command()
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The file to write."
)
@click.pass_obj
def command(invocation: Invocation, output: Path) -> None:
    """Write the exposed methods as a serialized google.protobuf.FileDescriptorSet.

    grpcurl takes it as -protoset, buf curl as --schema, protoc as --descriptor_set_in.
    """
    mesh, _ = analysed(invocation.manifest)
    if mesh.gateway is None:
        raise click.ClickException(f"{invocation.manifest} has no gateway: nothing is exposed")
    files = descriptor_pb2.FileDescriptorSet.FromString(mesh.descriptor_set)
    exposed = cut_down(files, exposed_methods(mesh.gateway))
    output.write_bytes(exposed.SerializeToString(deterministic=True))
