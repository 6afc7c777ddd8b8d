"""A real systemd in namespaces of its own: process 1 of a copy of this machine, on which nothing that is written is kept.

It shares this machine's network, and ends with whoever started it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from generator.outputs.local.processes import end_with_parent
from support.mesh import REPOSITORY

SYSTEMD = Path("/lib/systemd/systemd")
BOOT_S = 60
COMMAND_S = 120
NAMESPACES = ("--pid", "--mount", "--ipc", "--uts", "--cgroup")
SCRIPT = """\
set -eu
umask 022
base=$1; shift
mount --make-rprivate /
mount -t tmpfs -o mode=0755 tmpfs "$base"
mkdir "$base/upper" "$base/work" "$base/root"
mount -t overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" overlay "$base/root"
cd "$base/root"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t tmpfs tmpfs sys/fs/cgroup
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=0755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=0755 tmpfs dev
for device in null zero full random urandom tty; do : > "dev/$device"; mount --bind "/dev/$device" "dev/$device"; done
mkdir dev/shm dev/pts; ln -s /proc/self/fd dev/fd; ln -s pts/ptmx dev/ptmx
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
for folder; do
    layer=$base/layers$folder
    mkdir -p ".$folder" "$layer/upper" "$layer/work"
    mount -t overlay -o "lowerdir=$folder,upperdir=$layer/upper,workdir=$layer/work,metacopy=on" overlay ".$folder"
    find ".$folder" -xdev '(' -type d '!' -perm -005 -o -type f '!' -perm -004 ')' -exec chmod go+rX {} +
    above=$(dirname "$folder")
    while [ "$above" != / ]; do chmod o+x ".$above"; above=$(dirname "$above"); done
done
: > etc/machine-id
mount --make-rshared "$base/root"
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot . /lib/systemd/systemd --unit=basic.target --show-status=0
"""
"""Everything is private but the new root: systemd puts credentials where a unit sees them by what propagates there.

The programs stay readable to the units' users where this checkout was made with a mask of 077: in layers of their own, of which only
the modes are copied.
"""


class CannotBootError(Exception):
    """There can be no systemd here; the text says why."""


class Machine:
    """One that runs."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log
        self.init = 0

    def wait(self) -> None:
        """Until it has booted. Raises CannotBootError."""
        deadline = time.monotonic() + BOOT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
            with contextlib.suppress(OSError):
                self.init = int((children.read_text().split() or ["0"])[0])
            if self.init and self.run("systemctl", "is-system-running", check=False) in ("running", "degraded"):
                return
            time.sleep(0.1)
        raise CannotBootError(
            f"systemd does not start in namespaces here: {self._log.read_text(errors='replace')[-500:]}"
        )

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command on it as root; what it printed."""
        enter = ["nsenter", "--target", str(self.init), "-m", "-p", "-i", "-u", "-C", "--root", "--wd"]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SYSTEMD_PAGER": ""}
        done = subprocess.run(
            [*enter, *command], capture_output=True, text=True, timeout=COMMAND_S, check=False, env=environment
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    def write(self, path: Path, text: str) -> None:
        """Write a file on it, in a folder that every user of it may enter."""
        below = Path(f"/proc/{self.init}/root") / path.relative_to("/")
        below.parent.mkdir(parents=True, exist_ok=True)
        below.parent.chmod(0o755)
        below.write_text(text)
        below.chmod(0o644)

    def shown(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.run("systemctl", "show", "--value", "--property", name, unit)


@contextlib.contextmanager
def machine() -> Iterator[Machine]:
    """Boot one. Raises CannotBootError."""
    for program in (str(SYSTEMD), "unshare", "nsenter"):
        if shutil.which(program) is None:
            raise CannotBootError(f"{program} is not on this machine")
    if os.geteuid() != 0:
        raise CannotBootError("namespaces with mounts need root")
    folders = dict.fromkeys(str(Path(path).resolve()) for path in (REPOSITORY, sys.prefix, sys.base_prefix))
    if any(Path(folder).is_relative_to(hidden) for folder in folders for hidden in ("/tmp", "/var/tmp")):
        raise CannotBootError("the units have a /tmp of their own (PrivateTmp): they see no checkout that lies there")
    with tempfile.TemporaryDirectory(prefix="nms-") as base, tempfile.NamedTemporaryFile() as log:
        command = [
            *end_with_parent(),
            "unshare",
            *NAMESPACES,
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            SCRIPT,
            "boot",
            base,
        ]
        process = subprocess.Popen([*command, *folders], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            booted = Machine(process, Path(log.name))
            booted.wait()
            yield booted
        finally:
            process.kill()  # `unshare` ignores anything less; its child, and with that every process inside, goes along
            process.wait()
