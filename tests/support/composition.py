"""The repository's mesh in containers: its rendered Compose file, brought up by podman-compose."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import grpc.aio
import yaml

from generator.cli.main import main
from support.mesh import REPOSITORY, free_port
from support.podman import Podman, PodmanError, readable_by_all

COMPOSE_S_MAX = 120
HEALTHY_S_MAX = 90
POLL_S = 0.1
MANIFEST = "/etc/nipmesh/mesh/mesh.yaml"
STATE = "/var/lib/nipmesh"


class Composition:
    """One project; `up` and `down` as a user would do both."""

    def __init__(self, podman: Podman, folder: Path, *, lifetime: str) -> None:
        self.podman, self.folder = podman, folder
        self.project = f"nipmesh{free_port()}"
        self.gateway = f"127.0.0.1:{free_port()}"
        for file in (REPOSITORY / "protos").rglob("*.proto"):
            (folder / file.relative_to(REPOSITORY)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / file.relative_to(REPOSITORY))
        text = (REPOSITORY / "mesh.yaml").read_text()
        assert text.count("127.0.0.1:8080") == 1
        text = text.replace("127.0.0.1:8080", self.gateway)
        # One replica less of two services: what two show, those of payment show.
        text = text.replace("    replicas: 2\n", "    replicas: 1\n", 2)
        (folder / "mesh.yaml").write_text(f"{text}\ncertificates: {{lifetime: {lifetime}}}\n")
        words = ["--file", str(folder / "mesh.yaml"), "render", "--target", "compose", "-o", str(folder)]
        main(words, standalone_mode=False)
        readable_by_all(folder)
        self.document = self._without_what_podman_lacks(folder / "compose.yaml")

    @staticmethod
    def _without_what_podman_lacks(path: Path) -> dict[str, Any]:
        """Podman before 5 does not know `start_interval`; how often it asks is the tests' matter anyway."""
        lines = path.read_text().splitlines()
        path.write_text("\n".join(line for line in lines if not line.lstrip().startswith("start_interval:")) + "\n")
        found: dict[str, Any] = yaml.safe_load(path.read_text())
        return found

    @property
    def services(self) -> dict[str, Any]:
        """What the file says of each container."""
        found: dict[str, Any] = self.document["services"]
        return found

    def compose(self, *words: str) -> None:
        """Run podman-compose. Raises PodmanError."""
        command = ["podman-compose", "--podman-path", str(self.podman.program), "-p", self.project, *words]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.podman.environment,
            capture_output=True,
            text=True,
            timeout=COMPOSE_S_MAX,
            check=False,
        )
        if done.returncode:
            raise PodmanError(f"podman-compose {' '.join(words)}: {done.stdout}{done.stderr}")

    def up(self) -> None:
        """Start each container when what it depends on is well: Podman 4 does not wait for that itself."""
        for stage in self.stages():
            self.start(*stage)

    def start(self, *names: str) -> None:
        """Start containers that do not run, and wait until they are well."""
        self.compose("up", "--detach", "--no-deps", "--no-recreate", *names)
        for name in names:
            self.until_well(name)

    def stages(self) -> list[list[str]]:
        """The containers in the order of `depends_on`."""
        found: list[list[str]] = []
        done: set[str] = set()
        chosen = {name: service for name, service in self.services.items() if "profiles" not in service}
        while len(done) < len(chosen):
            ready = [
                name
                for name, service in chosen.items()
                if name not in done and set(service.get("depends_on", ())) <= done
            ]
            assert ready, f"nothing can start after {sorted(done)}"
            found.append(ready)
            done |= set(ready)
        return found

    def container(self, service: str) -> str:
        """The name that podman-compose gives it."""
        return f"{self.project}_{service}_1"

    def is_well(self, service: str) -> bool:
        """Run its health check, as whoever runs containers does."""
        return self.podman.succeeds("healthcheck", "run", self.container(service))

    def until_well(self, service: str) -> None:
        """Wait until its health check passes. Raises PodmanError with its log."""
        until = time.monotonic() + HEALTHY_S_MAX
        while not self.is_well(service):
            if time.monotonic() > until:
                raise PodmanError(f"{service} is not well\n{self.log(service)}")
            time.sleep(POLL_S)

    def pid(self, service: str) -> int:
        """The process of a container as this machine sees it; 0: there is none."""
        return int(self.podman.inspect(self.container(service))["State"]["Pid"])

    def log(self, service: str) -> str:
        """What a container has printed."""
        done = subprocess.run(
            [*self.podman.words, "logs", self.container(service)],
            env=self.podman.environment,
            capture_output=True,
            text=True,
            timeout=COMPOSE_S_MAX,
            check=False,
        )
        return done.stdout + done.stderr

    def python(self, service: str, program: str) -> str:
        """Run a few lines of Python in a container; what they print."""
        return self.podman.run("exec", self.container(service), "python", "-c", program)

    def token(self, subject: str, role: str) -> str:
        """A token that the mesh's own key signed, as docs/containers.md says."""
        words = ("python", "-m", "generator", "-f", MANIFEST, "token", "--state", STATE)
        return self.podman.run("exec", self.container("agent"), *words, "--subject", subject, "--role", role).strip()

    def envoy_serials(self, workload: str) -> set[str]:
        """The serial numbers of the leaves that a sidecar has in use, from its own admin page."""
        program = (
            "import http.client, socket; c = http.client.HTTPConnection('admin'); c.sock = socket.socket(socket.AF_UNIX)\n"
            "c.sock.connect('/run/nipmesh/admin.sock'); c.request('GET', '/certs'); print(c.getresponse().read().decode())"
        )
        pages = json.loads(self.python(workload, program))["certificates"]
        return {chain["serial_number"] for page in pages for chain in page.get("cert_chain", ())}

    def channel(self) -> grpc.aio.Channel:
        """A fresh connection to the gateway."""
        return grpc.aio.insecure_channel(self.gateway, options=(("grpc.use_local_subchannel_pool", 1),))

    def down(self) -> None:
        """Stop and remove it, its volumes included."""
        self.compose("down", "--volumes", "--timeout", "1")
