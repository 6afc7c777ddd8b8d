"""Shows Envoy the validation twin of every workload and reports what it refuses."""

from __future__ import annotations

import datetime as dt
import json
import re
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from generator.outputs.local.binary import find_envoy
from generator.pki import Authority, Leaf, issue_leaf
from generator.pki.authority import make_authority
from generator.resources import Resource, ResourceSet, WorkloadResources, make_resource, twin
from generator.resources.references import every

PARALLEL = 2
"""Envoys at once: each needs a core for about a tenth of a second."""
TIMEOUT_S = 60.0
LIFETIME = dt.timedelta(hours=1)
MESSAGE = re.compile(r"^\[[^\]]*\]\[[^\]]*\]\[(?:critical|error)\]\[[^\]]*\] (?:\[[^\]]*\] )?(.*)$", re.MULTILINE)
"""A line of Envoy's log, e.g. `[2026-01-01 00:00:00.000][12][critical][main] [source/server/server.cc:1] text`."""
DUMP = re.compile(r"goo\.gle/debug\w*\s.*?^: ", re.DOTALL | re.MULTILINE)
"""The configuration, which Envoy prints over many lines before it says what is wrong with it; it may hold a private key."""
MESSAGE_CHARACTERS_MAX = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvoyRefusal:
    """Envoy does not accept a workload's configuration."""

    workload: str
    resource: str | None
    """The resource that Envoy's words speak of, e.g. `Listener inbound`; None when they name none."""
    message: str
    """Envoy's own words."""

    def __str__(self) -> str:
        return f"{self.workload}, {self.resource or 'bootstrap'}: {self.message}"


def validate_with_envoy(resources: ResourceSet, *, envoy: Path | None = None) -> tuple[EnvoyRefusal, ...]:
    """Run `envoy --mode validate` on the twin of every workload; nothing refused: an empty tuple.

    Envoy loads certificates, too; where they do not exist yet, throwaway ones stand in. Raises EnvoyNotFoundError,
    OSError, and subprocess.TimeoutExpired when Envoy hangs.
    """
    program = envoy or find_envoy()
    leaf = throwaway_leaf()
    with tempfile.TemporaryDirectory(prefix="nipmesh-check-") as folder:
        ask = partial(_validate, program, leaf, Path(folder))
        with ThreadPoolExecutor(max_workers=PARALLEL) as pool:
            answers = tuple(pool.map(ask, resources.workloads))
    return tuple(answer for answer in answers if answer is not None)


def validate_bootstrap(envoy: Path, bootstrap: Path) -> str | None:
    """Ask Envoy about one bootstrap file; its complaint, or None. Raises OSError and subprocess.TimeoutExpired."""
    command = [str(envoy), "--mode", "validate", "--config-path", str(bootstrap), "--log-level", "error"]
    command += ["--concurrency", "1", "--disable-hot-restart", "--reject-unknown-dynamic-fields"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode == 0:
        return None
    said = DUMP.sub("", done.stderr)
    found = MESSAGE.findall(said)
    return "; ".join(found)[:MESSAGE_CHARACTERS_MAX] or said[-MESSAGE_CHARACTERS_MAX:] or "no reason given"


def _validate(envoy: Path, leaf: Leaf, folder: Path, workload: WorkloadResources) -> EnvoyRefusal | None:
    secrets = tuple(loadable(secret, leaf) for secret in workload.secrets)
    clusters = tuple(loadable(cluster, leaf) for cluster in workload.clusters)
    path = folder / f"{workload.name}.json"
    path.write_text(json.dumps(twin(replace(workload, clusters=clusters), secrets)), encoding="utf-8")
    complaint = validate_bootstrap(envoy, path)
    if complaint is None:
        return None
    message = complaint.replace(str(path), "validate.json")
    return EnvoyRefusal(workload=workload.name, resource=resource_named_in(message, workload), message=message)


def resource_named_in(message: str, workload: WorkloadResources) -> str | None:
    """Find the resource that Envoy's words speak of, the longest name first."""
    candidates = sorted(every(workload)[1:], key=lambda resource: -len(resource.name))
    for resource in candidates:
        if re.search(rf"(?<![\w-]){re.escape(resource.name)}(?![\w-])", message):
            return f"{resource.type.short} {resource.name}"
    return None


def throwaway_leaf() -> Leaf:
    """Make a certificate that nobody trusts, with its authority, in memory."""
    now = dt.datetime.now(dt.UTC)
    authority = Authority(trust_domain="validation.invalid", keys=(make_authority("validation.invalid", now),))
    return issue_leaf(authority, identity="spiffe://validation.invalid/nobody", lifetime=LIFETIME, now=now)


def loadable(resource: Resource, leaf: Leaf) -> Resource:
    """Give the resource itself when the files of its certificates exist, else it with the throwaway ones in it."""
    body = _with_certificates(resource.body, leaf)
    return resource if body == resource.body else make_resource(resource.type, body)


def _with_certificates(value: Any, leaf: Leaf) -> Any:
    """Copy JSON; a certificate and its key are replaced together, or they would not fit each other."""
    if isinstance(value, list):
        return [_with_certificates(item, leaf) for item in value]
    if not isinstance(value, dict):
        return value
    if "certificate_chain" in value and not _are_there(value):
        private_key = leaf.private_key_pem.reveal().decode()
        return {"certificate_chain": _inline(leaf.certificate_pem.decode()), "private_key": _inline(private_key)}
    if "trusted_ca" in value and not _are_there(value["trusted_ca"]):
        rest = {name: item for name, item in value.items() if name != "watched_directory"}
        return rest | {"trusted_ca": _inline(leaf.authorities_pem.decode())}
    return {name: _with_certificates(item, leaf) for name, item in value.items()}


def _inline(text: str) -> dict[str, str]:
    return {"inline_string": text}


def _are_there(source: dict[str, Any]) -> bool:
    return all(Path(name).is_file() for name in _file_names(source))


def _file_names(value: Any) -> list[str]:
    if not isinstance(value, dict):
        return []
    own = [value["filename"]] if "filename" in value else []
    return own + [name for item in value.values() for name in _file_names(item)]
