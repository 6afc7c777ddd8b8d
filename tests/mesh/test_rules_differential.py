"""The rules that we read from Envoy's protobufs, against Envoy: what we refuse it refuses, and for the same field.

`NIPMESH_RULES_RUNS=0` shows Envoy every value at the edge of every rule of every message that our resources can hold
(about 2,300 values); by default a sample with every kind of rule in it.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import random
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from generator.outputs.files.validation import validate_bootstrap
from generator.outputs.local.binary import find_envoy
from generator.resources import ResourceError, decode
from support.constraints import ABSENT, Edit, change, edits, holder_of, sites
from support.policy_meshes import policy_twins
from support.protojson import extension_types, reachable

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(1_800)]
RUNS_MAX = int(os.environ.get("NIPMESH_RULES_RUNS", "75")) or 1_000_000
"""Values that break a rule, and groups of values that break none, which Envoy is shown; 0 for all."""
PARALLEL = 2
GROUP_MAX = 12
"""Values in one bootstrap, none of which breaks a rule."""
RULE_BROKEN = "Proto constraint validation failed"
NOT_BY_A_RULE = {
    "Expected positive duration": "negative durations are refused before the rules are looked at",
    "does not set exactly one of claim_name and claim_path": "an absent name is refused by a rule of Envoy's code",
    "max heap size must be greater than 0": "the monitor's own check comes first",
}
"""Where a value breaks a rule and Envoy refuses it for another reason."""
UNCHECKED = re.compile(
    r"^envoy\.extensions\.load_balancing_policies\.|^envoy\.extensions\.retry\.priority\.previous_priorities\."
)
"""Extensions whose rules Envoy 1.40 does not look at when it makes them; we do."""
RELAXED = {"envoy.type.v3.TokenBucket.max_tokens": "zero tokens are fine for Envoy 1.40, not for xds-protos 1.85"}
"""Fields whose rule Envoy has no longer."""
CRASHES = {"envoy.config.core.v3.TlvEntry.type": "a PROXY protocol TLV without the context that it is for"}
"""Fields whose values break no rule, and make Envoy 1.40 crash where the twins have no such thing."""
UNREACHABLE = re.compile(
    r"^envoy\.config\.cluster\.v3\.Cluster\.RefreshRate$"  # these are below deprecated fields only
    r"|^envoy\.config\.core\.v3\.(DnsResolutionConfig|DnsResolverOptions|KeyValue)$"
    r"|^envoy\.config\.listener\.v3\.Listener\.DeprecatedV1$"
    r"|^envoy\.config\.route\.v3\.(CorsPolicy|RateLimit\.Action\.DynamicMetaData)$"
    r"|^envoy\.config\.trace\.v3\.Tracing(\..*)?$"
    r"|^envoy\.extensions\.transport_sockets\.tls\.v3\.CommonTlsContext\.CertificateProvider(Instance)?$"
    r"|^envoy\.type\.matcher\.v3\.RegexMatcher\.GoogleRE2$"
    r"|^envoy\.config\.endpoint\.v3\.LocalityLbEndpoints\.LbEndpointList$"
    r"|^google\.protobuf\."
)

Bootstraps = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def bootstraps(tmp_path_factory: pytest.TempPathFactory) -> Bootstraps:
    """Twins that hold every extension which our templates use."""
    return policy_twins(tmp_path_factory.mktemp("policies"))


@pytest.fixture(scope="module")
def judged(bootstraps: Bootstraps) -> list[tuple[Edit, bool]]:
    """Every edit with our opinion of it."""
    return [(edit, is_taken_by_us(edit, bootstraps)) for edit in edits(sites(bootstraps))]


def is_taken_by_us(edit: Edit, bootstraps: Bootstraps) -> bool:
    holder = copy.deepcopy(holder_of(edit, bootstraps[edit.site.bootstrap]))
    change(edit, holder)
    holder.pop("@type", None)
    try:
        decode(edit.site.holder_type.full_name, holder, "x")
    except ResourceError:
        return False
    return True


def sample(listed: Iterable[Edit], count: int) -> list[Edit]:
    """Edits of every kind of rule: in turn one of each, in a fixed order without a pattern."""
    kinds: dict[str, list[Edit]] = {}
    for edit in random.Random(1).sample(list(listed), k=len(list(listed))):
        kinds.setdefault(edit.rule, []).append(edit)
    turns = itertools.zip_longest(*(kinds[kind] for kind in sorted(kinds)))
    return list(itertools.islice((edit for turn in turns for edit in turn if edit is not None), count))


def groups(listed: Iterable[Edit]) -> Iterator[list[Edit]]:
    """Edits that can be made in one bootstrap together: none is where another is, or below or above it."""
    made: list[list[Edit]] = []
    for edit in listed:
        group = next((group for group in made if len(group) < GROUP_MAX and fits(edit, group)), None)
        if group is None:
            made.append([edit])
        else:
            group.append(edit)
    yield from made


def fits(edit: Edit, group: list[Edit]) -> bool:
    first = group[0].site
    if (edit.site.bootstrap, edit.site.is_typed) != (first.bootstrap, first.is_typed):
        return False
    return not any(one.place[: len(other)] == other[: len(one.place)] for one in group for other in [edit.place])


class Asker:
    """Shows Envoy bootstraps."""

    def __init__(self, folder: Path, bootstraps: Bootstraps) -> None:
        self.folder, self.bootstraps, self.envoy = folder, bootstraps, find_envoy()
        self.count = itertools.count()

    def about(self, group: list[Edit]) -> str | None:
        """What Envoy says against edits of one bootstrap; None when it takes it."""
        body = copy.deepcopy(self.bootstraps[group[0].site.bootstrap])
        for edit in group:
            change(edit, holder_of(edit, body))
        path = self.folder / f"{next(self.count)}.json"
        path.write_text(json.dumps(body), encoding="utf-8")
        return validate_bootstrap(self.envoy, path)

    def about_each(self, asked: list[list[Edit]]) -> list[tuple[list[Edit], str | None]]:
        with ThreadPoolExecutor(max_workers=PARALLEL) as pool:
            return list(zip(asked, pool.map(self.about, asked), strict=True))


@pytest.fixture
def asker(tmp_path: Path, bootstraps: Bootstraps, monkeypatch: pytest.MonkeyPatch) -> Asker:
    """Envoy makes log files even when it only validates, and many of the values are names of such."""
    monkeypatch.chdir(tmp_path)
    return Asker(tmp_path, bootstraps)


def test_the_twins_hold_every_message_that_our_resources_can(bootstraps: Bootstraps) -> None:
    found = sites(bootstraps)
    assert [name for name in extension_types() if name not in found] == []
    assert [name for name in reachable() if name not in found and not UNREACHABLE.match(name)] == []


def test_envoy_takes_the_twins_as_they_are(bootstraps: Bootstraps, tmp_path: Path) -> None:
    for name, body in bootstraps.items():
        path = tmp_path / f"{name.replace('/', '-')}.json"
        path.write_text(json.dumps(body), encoding="utf-8")
        assert validate_bootstrap(find_envoy(), path) is None


def test_what_we_refuse_envoy_refuses_for_the_same_field(judged: list[tuple[Edit, bool]], asker: Asker) -> None:
    refused = sample([edit for edit, taken in judged if not taken], RUNS_MAX)
    assert len({edit.rule for edit in refused}) > 30
    answers = asker.about_each([[edit] for edit in refused])
    wrong = [f"{edit}: {said}" for (edit,), said in answers if not is_refused_alike(edit, said)]
    assert not wrong, "\n".join(wrong)


def is_refused_alike(edit: Edit, said: str | None) -> bool:
    """Whether Envoy names the field, or answers otherwise as it is known to."""
    full_name = edit.site.descriptor.full_name
    if said is not None and RULE_BROKEN in said:
        by_field = f"{edit.site.descriptor.name}ValidationError.{edit.field}".replace("_", "").lower()
        return by_field in said.replace("_", "").lower() or (edit.value == ABSENT and "reason: is required" in said)
    if UNCHECKED.match(full_name) is not None or f"{full_name}.{edit.field}" in RELAXED:
        return True
    return said is not None and any(reason in said for reason in NOT_BY_A_RULE)


def test_what_we_take_breaks_no_rule_for_envoy(judged: list[tuple[Edit, bool]], asker: Asker) -> None:
    """Envoy checks the whole bootstrap before it uses any of it; what is in an `Any` only when it gets there.

    So a group of typed edits that it refuses for a reason of its own is shown to it one by one.
    """
    taken = sample([edit for edit, taken in judged if taken], RUNS_MAX * 4)
    answers = asker.about_each(list(groups(taken)))
    unsure = [edit for group, said in answers if said is not None and group[0].site.is_typed for edit in group]
    answers += asker.about_each([[edit] for edit in sample(unsure, RUNS_MAX // 2)])
    wrong = [f"{[str(edit) for edit in group]}: {said}" for group, said in answers if is_against_a_rule(group, said)]
    assert not wrong, "\n".join(wrong)


def is_against_a_rule(group: list[Edit], said: str | None) -> bool:
    """Whether Envoy finds a broken rule, or crashes where it is not known to."""
    if said is None:
        return False
    known = any(f"{edit.site.descriptor.full_name}.{edit.field}" in CRASHES for edit in group)
    return RULE_BROKEN in said or ("Caught " in said and not known)
