"""Envoy's protobufs in a pool of their own, so that their names never meet those of other distributions."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from generator.resources.errors import DescriptorsMissingError

DESCRIPTOR_SET = "envoy.binpb"
TYPE_PREFIX = "type.googleapis.com/"


@cache
def pool() -> descriptor_pool.DescriptorPool:
    """Every message that xds-protos knew at build time. Raises DescriptorsMissingError."""
    try:
        content = (files("generator.resources") / "data" / DESCRIPTOR_SET).read_bytes()
    except FileNotFoundError as error:
        raise DescriptorsMissingError(
            f"{DESCRIPTOR_SET} is missing; `pip install` makes it, `python -m generator.catalog.build_hook` does not"
        ) from error
    filled = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(content).file:
        filled.AddSerializedFile(file.SerializeToString())
    return filled


@cache
def find_descriptor(full_name: str) -> Descriptor | None:
    """The message of this full name, e.g. `envoy.config.cluster.v3.Cluster`; None when Envoy's API has none."""
    try:
        return pool().FindMessageTypeByName(full_name)
    except (KeyError, TypeError):  # the second for a name with lone surrogates
        return None


@cache
def message_class(descriptor: Descriptor) -> type[Message]:
    """The dynamic class of a message of the pool."""
    return message_factory.GetMessageClass(descriptor)


def parse_options(full_name: str, content: bytes) -> Message:
    """Parse options (e.g. `google.protobuf.FieldOptions`) with the extensions that this pool knows."""
    descriptor = find_descriptor(full_name)
    assert descriptor is not None, full_name
    return message_class(descriptor).FromString(content)


def extension(options: Message, name: str) -> object:
    """The value of an extension of options, e.g. `validate.rules`; its default when it is not set."""
    found: Any = pool().FindExtensionByName(name)
    value: object = options.Extensions[found]
    return value


def has_extension(options: Message, name: str) -> bool:
    """Whether a message extension of options is set."""
    found: Any = pool().FindExtensionByName(name)
    return options.HasExtension(found)
