"""Mutated manifests: the same seed and number give the same text, on every machine.

A mutant is a manifest after a few operations, each with a random generator of its own, so that any of them can be left
out when a failure is made small. Some change the tree of values (guided by the manifest's JSON Schema, so that keys
which are added to it are covered at once), others the text.
"""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import yaml

from support.schema_values import Writer, breadth, schema_keys, schemas_at
from support.text_mutations import ON_TEXTS

REPOSITORY = Path(__file__).resolve().parents[2]
OPERATIONS_MAX = 3
SLIPS = 0.15
"""How often a value that is slightly wrong has a slip at each step."""
MISSING = 0.7
"""How often a key that stands nowhere yet is written, if there is one."""
BREADTH_MAX = 30
"""How much likelier a key is written that has many keys below it."""
MERGED = 0.7
"""How often a mapping that is written where one stands is added to it."""
STRINGS = [
    "", " ", "a", "A", "é", "日本", "\U0001f600", "\u202e", "\u2028", "\x7f", "\x85", "a" * 41, "a" * 70_000, "on", "n", "yes",
    "null", "~", "1_0", "0x1F", ".nan", "1e9", "2001-01-01", "5", "5s", "0s", "1ms", "24h", "999999999h", "1.5s", "-1s",
    "127.0.0.1:0", "127.0.0.1:65535", "127.0.0.1:65536", "[::1]:8080", "0.0.0.0:80", "256.1.1.1:1", "127.0.0.1:21000",
    "*", "A/B", "Service/*", "x.y.Z/*", "a.b.C", "gateway", "envoy", "{{ 7 * 7 }}", "{% if %}", "${HOME}", "$(id)", "`id`",
    "..", ".", "/nowhere", "protos", "../protos", "spiffe://x", "https://a.example", "%REQ(a)%", "%", "a: b", "- a", "'", '"',
    "\\", "x\ty", "x\ny", "&a", "*a", "!!python/object:os.system", "!x y", "<<", "#", "a #b", "|", ">", "@", "`", ":", "?",
]  # fmt: skip
NUMBERS: list[Any] = [
    0, -1, 1, 2, 3, 99, 100, 101, 1000, 65_535, 65_536, 2**31, 2**32, 2**53, 2**63, 2**64, -(2**63), 10**30, 0.0, 0.5, 1.0,
    1e-9, 1e308, float("inf"), float("-inf"), float("nan"),
]  # fmt: skip

SERVICE = re.compile(r"^service (\w+) \{(.*?)^\}", re.MULTILINE | re.DOTALL)
RPC = re.compile(r"^\s*rpc (\w+)", re.MULTILINE)
SafeDumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
Tree = Any
Trail = tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One mutated manifest."""

    seed: int
    number: int
    source: Path
    """The manifest that it was; its folder is where its relative paths lead."""
    kept: tuple[int, ...]
    """Which of its operations were carried out."""
    operations: tuple[str, ...]
    """Their names: those on the tree, then those on the text."""
    content: bytes


def sources() -> tuple[Path, ...]:
    """The manifests that are mutated: ours, those of the golden files, and the foreign mesh."""
    golden = sorted((REPOSITORY / "tests" / "golden" / "in").glob("*.yaml"))
    foreign = REPOSITORY / "tests" / "foreign" / "mesh.yaml"
    return (REPOSITORY / "mesh.yaml", *golden, *([foreign] if foreign.exists() else []))


def mutant(seed: int, number: int, keep: tuple[int, ...] | None = None) -> Mutant:
    """Make one; `keep` has the indices of the operations that are left, all by default."""
    draw = random.Random(f"{seed}:{number}")
    source = draw.choice(sources())
    count = draw.choice([1] * 4 + list(range(1, OPERATIONS_MAX + 1)))
    names = [draw.choice(list(WEIGHTED)) for _ in range(count)]
    kept = [index for index in range(count) if keep is None or index in keep]
    tree, done = copy.deepcopy(parsed(source)), []
    for index in kept:
        if names[index] in ON_TREES:
            tree = ON_TREES[names[index]](tree, random.Random(f"{seed}:{number}:{index}"))
            done.append(names[index])
    style = random.Random(f"{seed}:{number}:style")
    raw = source.read_bytes() if not done else dumped(tree, style).encode("utf-8", "surrogatepass")
    for index in kept:
        if names[index] in ON_TEXTS:
            raw = ON_TEXTS[names[index]](raw, random.Random(f"{seed}:{number}:{index}"))
            done.append(names[index])
    return Mutant(seed=seed, number=number, source=source, kept=tuple(kept), operations=tuple(done), content=raw)


@cache
def parsed(source: Path) -> Tree:
    return yaml.safe_load(source.read_text(encoding="utf-8"))


def dumped(tree: Tree, draw: random.Random) -> str:
    """YAML in block or flow style, or JSON, which is YAML, too."""
    if draw.random() < 0.2:
        return json.dumps(tree, ensure_ascii=draw.random() < 0.5, indent=draw.choice([None, 2]))
    return yaml.dump(
        tree, Dumper=Dumper, sort_keys=False, allow_unicode=draw.random() < 0.7, default_flow_style=draw.random() < 0.15
    )


class Dumper(SafeDumper):  # type: ignore[misc]  # one of two classes
    """Writes equal values out, so that no alias appears by accident."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


# Changes of the tree.


def nodes(tree: Tree, path: Trail = ()) -> Iterator[tuple[Trail, Tree]]:
    """Every node with its path, the root first."""
    yield path, tree
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from nodes(value, (*path, key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from nodes(value, (*path, index))


def at(tree: Tree, path: Trail) -> Tree:
    for key in path:
        tree = tree[key]
    return tree


def place(tree: Tree, path: Trail, value: Any) -> Tree:
    """Put a value at a path; the tree is changed in place unless the path is the root's."""
    if not path:
        return value
    at(tree, path[:-1])[path[-1]] = value
    return tree


def somewhere(tree: Tree, draw: random.Random, wanted: Callable[[Tree], bool] = lambda _: True) -> Trail | None:
    """A path below the root whose node is wanted."""
    found = [path for path, node in nodes(tree) if path and wanted(node)]
    return draw.choice(found) if found else None


def is_scalar(node: Tree) -> bool:
    return not isinstance(node, (dict, list))


def delete(tree: Tree, draw: random.Random) -> Tree:
    path = somewhere(tree, draw)
    if path is not None:
        del at(tree, path[:-1])[path[-1]]
    return tree


def rename(tree: Tree, draw: random.Random) -> Tree:
    """Give a key another name: misspelled, in another case, or that of any other key."""
    path = somewhere(tree, draw)
    if path is None or not isinstance(path[-1], str):
        return tree
    holder, old = at(tree, path[:-1]), path[-1]
    index = draw.randrange(len(old) or 1)
    names = [old.upper(), old.title(), old.replace("_", ""), old[:index] + old[index + 1 :], old + "s", f"x-{old}"]
    names += [draw.choice(words(tree)), draw.choice(schema_keys()), draw.choice(STRINGS)]
    new = draw.choice(names)
    entries = [(new if key == old else key, value) for key, value in holder.items()]
    holder.clear()
    holder.update(entries)
    return tree


def swap(tree: Tree, draw: random.Random) -> Tree:
    first, second = somewhere(tree, draw), somewhere(tree, draw)
    if first is None or second is None or first == second[: len(first)] or second == first[: len(second)]:
        return tree
    one, other = at(tree, first), at(tree, second)
    return place(place(tree, first, other), second, one)


def move(tree: Tree, draw: random.Random) -> Tree:
    """Copy a subtree to another place, below itself at times."""
    origin, target = somewhere(tree, draw), somewhere(tree, draw)
    return tree if origin is None or target is None else place(tree, target, copy.deepcopy(at(tree, origin)))


def retype(tree: Tree, draw: random.Random) -> Tree:
    path = somewhere(tree, draw)
    return tree if path is None else place(tree, path, odd_value(words(tree), draw))


def odd_value(vocabulary: list[str], draw: random.Random) -> Any:
    """A value that probably does not belong where it is put."""
    made: list[Callable[[], Any]] = [
        lambda: draw.choice(STRINGS),
        lambda: draw.choice(NUMBERS),
        lambda: draw.choice(vocabulary),
        lambda: draw.choice([None, True, False, [], {}, [[]], {"a": None}, [None]]),
        lambda: [draw.choice(STRINGS)],
        lambda: {draw.choice(STRINGS): draw.choice(STRINGS)},
        lambda: "".join(chr(draw.choice([draw.randrange(0x20, 0x7F), draw.randrange(0xA0, 0x3000)])) for _ in range(9)),
    ]
    return draw.choice(made)()


def reword(tree: Tree, draw: random.Random) -> Tree:
    """Put one of the manifest's own words in place of another: a service, a method, a variable."""
    path = somewhere(tree, draw, lambda node: isinstance(node, str))
    return tree if path is None else place(tree, path, draw.choice(words(tree)))


def words(tree: Tree) -> list[str]:
    """Every text and key of a tree, with the parts of the methods in it."""
    found = [value for _, value in nodes(tree) if isinstance(value, str)]
    found += [key for path, _ in nodes(tree) for key in path[-1:] if isinstance(key, str)]
    return sorted({*found, *(part for text in found for part in text.split("/")), "a"})


def grow(tree: Tree, draw: random.Random) -> Tree:
    """Make a collection large."""
    path = somewhere(tree, draw, lambda node: isinstance(node, (dict, list)) and bool(node))
    if path is None:
        return tree
    held, count = at(tree, path), draw.choice([2, 5, 33, 101, 1_001])
    if isinstance(held, list):
        held.extend(copy.deepcopy(held[0]) if draw.random() < 0.5 else f"a{index}" for index in range(count))
    else:
        value = next(iter(held.values()))
        held.update({f"a{index}": copy.deepcopy(value) for index in range(count)})
    return tree


def deepen(tree: Tree, draw: random.Random) -> Tree:
    path = somewhere(tree, draw)
    if path is None:
        return tree
    value = at(tree, path)
    for _ in range(draw.choice([1, 2, 14, 17, 300])):
        value = draw.choice([[value], {"a": value}])
    return place(tree, path, value)


# Changes that the schema guides.


def add_valid(tree: Tree, draw: random.Random) -> Tree:
    """Write a value that the schema allows for a key that may stand somewhere."""
    return add(tree, Writer(vocabulary=words(tree), methods=methods_of(tree), draw=draw))


def add_slightly_invalid(tree: Tree, draw: random.Random) -> Tree:
    """Do the same with slips: a value beside its range, or of another kind."""
    vocabulary = words(tree)
    odd = partial(odd_value, vocabulary, draw)
    return add(tree, Writer(vocabulary=vocabulary, methods=methods_of(tree), draw=draw, odd=odd, slips=SLIPS))


def add(tree: Tree, writer: Writer) -> Tree:
    options = list(places_for(tree))
    if not options:
        return tree
    missing = [(path, found) for path, found in options if path[-1] not in at_or_nothing(tree, path[:-1])]
    listed = missing if missing and writer.draw.random() < MISSING else options
    path, found = writer.draw.choices(listed, [min(breadth(found), BREADTH_MAX) for _, found in listed])[0]
    for key in path:
        writer = writer.about(str(key))
    value = writer.value(found)
    holder = at(tree, path[:-1])
    old = holder.get(path[-1]) if isinstance(holder, dict) else None
    if isinstance(old, dict) and isinstance(value, dict) and writer.draw.random() < MERGED:
        old.update(value)
        return tree
    return place(tree, path, value)


def methods_of(tree: Tree) -> dict[str, list[str]]:
    """What each service serves, with every method by name and `Service/*`."""
    services = tree.get("services") if isinstance(tree, dict) else None
    found: dict[str, list[str]] = {}
    for name, entry in services.items() if isinstance(services, dict) else ():
        serves = entry.get("serves") if isinstance(entry, dict) else None
        shorts = [str(full).rpartition(".")[2] for full in serves] if isinstance(serves, list) else []
        found[str(name)] = [
            f"{short}/{method}" for short in shorts for method in ["*", *known_methods().get(short, [])]
        ]
    return found


@cache
def known_methods() -> dict[str, list[str]]:
    """Methods by the last word of their service's name, in the protobufs of all sources."""
    folders = [source.parent / folder for source in sources() for folder in parsed(source)["protos"]]
    files = [path for folder in dict.fromkeys(folders) for path in sorted(folder.rglob("*.proto"))]
    found: dict[str, list[str]] = {}
    for text in (path.read_text(encoding="utf-8") for path in files):
        for service, body in SERVICE.findall(text):
            found.setdefault(service, []).extend(RPC.findall(body))
    return found


def at_or_nothing(tree: Tree, path: Trail) -> Any:
    """The keys of a mapping, or the indices of a list."""
    node = at(tree, path)
    return node if isinstance(node, dict) else range(len(node))


def places_for(tree: Tree) -> Iterator[tuple[Trail, dict[str, Any]]]:
    """Every key that the schema knows at a mapping of the tree, and every item of its lists."""
    for path, node in nodes(tree):
        for key, found in inner_schemas(node, path):
            yield (*path, key), found


def inner_schemas(node: Tree, path: Trail) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The schemas of what may stand directly below one node."""
    for found in schemas_at(path):
        if isinstance(node, dict):
            yield from found.get("properties", {}).items()
            more = found.get("additionalProperties")
            yield from ((key, more) for key in node if isinstance(more, dict))
        elif isinstance(node, list) and "items" in found:
            yield from ((index, found["items"]) for index in range(len(node)))


ON_TREES: dict[str, Callable[[Tree, random.Random], Tree]] = {
    function.__name__: function
    for function in (
        delete, rename, swap, move, retype, reword, grow, deepen, add_valid, add_slightly_invalid,
    )
}  # fmt: skip
WEIGHTED = [*ON_TREES, *ON_TEXTS, *["add_valid"] * 24, *["add_slightly_invalid"] * 4, *["reword", "swap", "delete"] * 2]
"""Names of operations, those that pass the first checks more often."""
