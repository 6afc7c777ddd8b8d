"""What of the user's protobufs the outside world may read: the exposed methods and the messages they need.

The cut keeps services with their exposed methods only, the messages and enums that these reach, the extensions of those
messages, and the files that hold them. Custom options go (field rules, HTTP bindings): they would need files that nobody
else asks for, and describe how the inside works. `idempotency_level`, being no custom option, stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from google.protobuf import descriptor_pb2
from google.protobuf.message import Message

OPTIONS_PREFIX = ".google.protobuf."
"""What can be extended there is options."""

Definition = descriptor_pb2.DescriptorProto | descriptor_pb2.EnumDescriptorProto


@dataclass(frozen=True, slots=True, kw_only=True)
class _Top:
    """A top-level message or enum and the file that holds it."""

    file: str
    definition: Definition


@dataclass(frozen=True, slots=True, kw_only=True)
class _Extension:
    """A field that some file adds to a message, and the top-level message that it is declared in, if any."""

    file: str
    holder: str | None
    field: descriptor_pb2.FieldDescriptorProto


def cut_down(
    files: descriptor_pb2.FileDescriptorSet, exposed: Mapping[str, frozenset[str]]
) -> descriptor_pb2.FileDescriptorSet:
    """Keep what `exposed` (full service name to method names) needs, in an order where imports come first.

    Raises KeyError when a service, method or type is not in `files`.
    """
    tops = _index(files)
    services = _exposed_services(files, exposed)
    extensions = _extensions(files, tops)
    wanted = _reached(services, tops, extensions)
    holders = {tops[name].file for name in wanted} | {file for file, _ in services}
    holders |= {extension.file for name in wanted for extension in extensions.get(name, ())}
    kept = descriptor_pb2.FileDescriptorSet()
    for file in files.file:
        if file.name in holders:
            kept.file.append(_cut_file(file, wanted, [service for name, service in services if name == file.name]))
    _fix_imports(kept, tops)
    return kept


def _index(files: descriptor_pb2.FileDescriptorSet) -> dict[str, _Top]:
    """Full name of each top-level type, with a leading dot as descriptors refer to it."""
    tops = {}
    for file in files.file:
        prefix = f".{file.package}." if file.package else "."
        definitions: list[Definition] = [*file.message_type, *file.enum_type]
        for definition in definitions:
            tops[prefix + definition.name] = _Top(file=file.name, definition=definition)
    return tops


def _extensions(
    files: descriptor_pb2.FileDescriptorSet, tops: Mapping[str, _Top]
) -> Mapping[str, tuple[_Extension, ...]]:
    """The extensions of each top-level message and of those in it; custom options are none of them."""
    found: dict[str, tuple[_Extension, ...]] = {}
    for file in files.file:
        prefix = f".{file.package}." if file.package else "."
        declared: list[tuple[str | None, descriptor_pb2.FieldDescriptorProto]] = [(None, f) for f in file.extension]
        declared += [(prefix + message.name, field) for message in file.message_type for field in _nested(message)]
        for holder, field in declared:
            if not field.extendee.startswith(OPTIONS_PREFIX):
                extended = _top_of(field.extendee, tops)
                extension = _Extension(file=file.name, holder=holder, field=field)
                found[extended] = (*found.get(extended, ()), extension)
    return found


def _nested(message: descriptor_pb2.DescriptorProto) -> Iterator[descriptor_pb2.FieldDescriptorProto]:
    """Extensions that are declared in a message, at any depth."""
    yield from message.extension
    for nested in message.nested_type:
        yield from _nested(nested)


def _exposed_services(
    files: descriptor_pb2.FileDescriptorSet, exposed: Mapping[str, frozenset[str]]
) -> list[tuple[str, descriptor_pb2.ServiceDescriptorProto]]:
    """(file, service with only its exposed methods) for each exposed service."""
    found = []
    missing = dict(exposed)
    for file in files.file:
        for service in file.service:
            methods = missing.pop(f"{file.package}.{service.name}" if file.package else service.name, None)
            if methods is not None:
                found.append((file.name, _only_methods(service, methods)))
    if missing:
        raise KeyError(f"no such service: {', '.join(sorted(missing))}")
    return found


def _only_methods(
    service: descriptor_pb2.ServiceDescriptorProto, methods: frozenset[str]
) -> descriptor_pb2.ServiceDescriptorProto:
    unknown = methods - {method.name for method in service.method}
    if unknown:
        raise KeyError(f"{service.name} has no method {', '.join(sorted(unknown))}")
    kept = descriptor_pb2.ServiceDescriptorProto(name=service.name)
    kept.options.CopyFrom(service.options)
    kept.method.extend(method for method in service.method if method.name in methods)
    return kept


def _reached(
    services: list[tuple[str, descriptor_pb2.ServiceDescriptorProto]],
    tops: Mapping[str, _Top],
    extensions: Mapping[str, tuple[_Extension, ...]],
) -> set[str]:
    """Every top-level type that a method's request or response needs or may carry, transitively."""
    waiting = [name for _, service in services for method in service.method for name in _method_types(method)]
    reached: set[str] = set()
    while waiting:
        top = _top_of(waiting.pop(), tops)
        if top not in reached:
            reached.add(top)
            waiting.extend(_referenced(tops[top].definition))
            for extension in extensions.get(top, ()):
                waiting.extend(name for name in (extension.holder, extension.field.type_name) if name)
    return reached


def _method_types(method: descriptor_pb2.MethodDescriptorProto) -> tuple[str, str]:
    return (method.input_type, method.output_type)


def _top_of(name: str, tops: Mapping[str, _Top]) -> str:
    """Find the top-level type around a nested one: `.a.Outer.Inner` is in `.a.Outer`."""
    outer = name
    while outer and outer not in tops:
        outer = outer.rpartition(".")[0]
    if not outer:
        raise KeyError(f"no such type: {name}")
    return outer


def _referenced(definition: Definition) -> Iterator[str]:
    if isinstance(definition, descriptor_pb2.EnumDescriptorProto):
        return
    yield from (field.type_name for field in definition.field if field.type_name)
    for nested in definition.nested_type:
        yield from _referenced(nested)


def _cut_file(
    file: descriptor_pb2.FileDescriptorProto,
    wanted: set[str],
    services: list[descriptor_pb2.ServiceDescriptorProto],
) -> descriptor_pb2.FileDescriptorProto:
    prefix = f".{file.package}." if file.package else "."
    cut = descriptor_pb2.FileDescriptorProto(name=file.name, package=file.package)
    if file.HasField("syntax"):  # proto2 leaves it out, and a pool refuses the empty word
        cut.syntax = file.syntax
    if file.HasField("edition"):
        cut.edition = file.edition
    cut.options.CopyFrom(file.options)
    cut.message_type.extend(message for message in file.message_type if prefix + message.name in wanted)
    cut.enum_type.extend(enum for enum in file.enum_type if prefix + enum.name in wanted)
    cut.extension.extend(file.extension)
    cut.service.extend(services)
    _drop_extensions(cut, wanted)
    _drop_custom_options(cut)
    return cut


def _drop_extensions(
    around: descriptor_pb2.FileDescriptorProto | descriptor_pb2.DescriptorProto, wanted: set[str]
) -> None:
    """Remove the declarations of extensions of what is not there, in a file or a message and all that is in it."""
    kept = [field for field in around.extension if any(_is_in(field.extendee, name) for name in wanted)]
    del around.extension[:]
    around.extension.extend(kept)
    inner = around.message_type if isinstance(around, descriptor_pb2.FileDescriptorProto) else around.nested_type
    for message in inner:
        _drop_extensions(message, wanted)


def _is_in(name: str, top: str) -> bool:
    """Whether a type is this top-level one or nested in it."""
    return name == top or name.startswith(f"{top}.")


def _drop_custom_options(message: Message) -> None:
    """Remove extensions, known and unknown, everywhere in a descriptor; protobuf's own options stay."""
    for field, value in message.ListFields():
        if field.is_extension:
            message.ClearExtension(field)  # type: ignore[arg-type]  # a descriptor serves as the extension's handle
        elif field.message_type is not None:
            for item in value if field.is_repeated else (value,):
                _drop_custom_options(item)
    message.DiscardUnknownFields()


def _fix_imports(kept: descriptor_pb2.FileDescriptorSet, tops: Mapping[str, _Top]) -> None:
    """Import exactly the files whose types a file still names."""
    for file in kept.file:
        names = {name for service in file.service for method in service.method for name in _method_types(method)}
        declared = list(file.extension)
        for message in file.message_type:
            names.update(_referenced(message))
            declared.extend(_nested(message))
        names.update(name for field in declared for name in (field.extendee, field.type_name) if name)
        needed = {tops[_top_of(name, tops)].file for name in names} - {file.name}
        file.dependency.extend(sorted(needed))
