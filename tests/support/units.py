"""Runs units of systemd without it: reads them as systemd.unit(5) and systemd.service(5) say, and starts what stands in them as processes.

What only a manager of the machine can do is left out: users, sandboxes, restarts. Whatever is read here and not known is an error, so
that a unit cannot say something that this lets pass.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from generator.outputs.local.processes import end_with_parent

STARTED_S = 90
ORDERED = {"Wants", "After", "PartOf"}
OURS = re.compile(r"nipmesh[a-z0-9-]*\.(service|timer|target)")
WORD = re.compile(r'"(?:[^"\\]|\\.)*"|[^\s"]+')
ESCAPE = re.compile(r'\\(x[0-9a-f]{2}|[ntr"\\])')
PLAIN = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\"}
MOUNTED = {"BindPaths", "BindReadOnlyPaths"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One file."""

    name: str
    settings: tuple[tuple[str, str, str], ...]
    """(section, key, value)"""

    @classmethod
    def read(cls, path: Path) -> Unit:
        """Every line is a section, an assignment, a comment, or nothing."""
        settings, section = [], ""
        for line in path.read_text().splitlines():
            if line.startswith("["):
                section = line.strip("[]")
            elif line and not line.startswith("#"):
                key, separator, value = line.partition("=")
                assert separator, f"{path}: {line}"
                assert section, f"{path}: {line}"
                settings.append((section, key, value))
        return cls(name=path.name, settings=tuple(settings))

    def all(self, key: str) -> list[str]:
        """Every value of a key, in any section."""
        return [value for _, other, value in self.settings if other == key]

    def one(self, key: str) -> str:
        """The last value of a key."""
        return self.all(key)[-1]

    @property
    def after(self) -> set[str]:
        """The units of the mesh that start before it."""
        return {name for value in self.all("After") for name in value.split() if OURS.fullmatch(name)}


def words(line: str, credentials: Path) -> list[str]:
    """The words of a line: quotes, escapes and specifiers are read."""
    found = WORD.findall(line)
    assert "".join(found) == "".join(line.split()) or '"' in line, line
    return [_specified(_unquoted(word), credentials) for word in found]


def _unquoted(word: str) -> str:
    if not word.startswith('"'):
        return word
    return ESCAPE.sub(lambda found: PLAIN.get(found[1]) or chr(int(found[1][1:], 16)), word[1:-1])


def _specified(word: str, credentials: Path) -> str:
    def value(found: re.Match[str]) -> str:
        return {"%": "%", "d": str(credentials)}[found[1]]

    return re.sub(r"%(.)", value, word)


@dataclass
class Running:
    """A service that was started."""

    unit: Unit
    process: subprocess.Popen[bytes]
    environment: dict[str, str]


@dataclass
class Units:
    """The units below a folder that stands for `/`, and those of them that run."""

    root: Path
    running: dict[str, Running] = field(default_factory=dict)

    def unit(self, name: str) -> Unit:
        """One unit, as it is now."""
        return Unit.read(self.root / "etc/systemd/system" / name)

    def make_folders(self) -> None:
        """What `systemd-tmpfiles --create` makes; the users are not there."""
        for line in (self.root / "etc/tmpfiles.d/nipmesh.conf").read_text().splitlines():
            if not line.startswith("#"):
                kind, path, mode, _, _, age = line.split()
                assert (kind, age) == ("d", "-"), line
                Path(path).mkdir(parents=True, exist_ok=True)
                Path(path).chmod(int(mode, 8))

    def order(self) -> list[Unit]:
        """The services of the target, each after those that it comes after."""
        (wanted,) = self.unit("nipmesh.target").all("Wants")
        waiting = {name: self.unit(name) for name in wanted.split() if name.endswith(".service")}
        ordered: list[Unit] = []
        while waiting:
            free = [name for name, unit in waiting.items() if not unit.after & waiting.keys()]
            assert free, f"a circle: {sorted(waiting)}"
            ordered += [waiting.pop(name) for name in free]
        return ordered

    def start_all(self) -> None:
        """Start the target: certificates first, for every sidecar comes after them."""
        self.run_once("nipmesh-certificates.service")
        for unit in self.order():
            self.start(unit.name)

    def start(self, name: str) -> None:
        """Start a service and everything that belongs to its start."""
        unit = self.unit(name)
        credentials = self._credentials(unit)
        if unit.one("Type") == "oneshot":
            self._run(unit, unit.one("ExecStart"), self._environment(unit, credentials))
            return
        assert unit.one("Type") == "exec"
        assert not any("%d" in line for line in unit.all("ExecStartPost")), "systemd 252 shows no credentials there"
        environment = self._environment(unit, credentials)
        for line in unit.all("ExecStartPre"):
            self._run(unit, line, environment)
        program, *arguments = self._command(unit, unit.one("ExecStart"), environment)
        found = (
            shutil.which(program, path=":".join(words(unit.one("ExecSearchPath"), credentials)))
            if unit.all("ExecSearchPath")
            else program
        )
        assert found, program
        with (self.root / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*end_with_parent(), found, *arguments],
                env=environment,
                cwd=self._folder(unit),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=int(unit.all("UMask")[0], 8),
            )
        self.running[name] = Running(unit=unit, process=process, environment=environment)
        for line in unit.all("ExecStartPost"):
            self._run(unit, line, environment)

    def stop(self, name: str) -> None:
        """Stop a service as its unit says."""
        running = self.running.pop(name)
        for line in running.unit.all("ExecStop"):
            self._run(running.unit, line, running.environment)
        running.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.process.wait(float(running.unit.one("TimeoutStopSec").rstrip("s")))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.process.pid, signal.SIGKILL)
        running.process.wait()

    def reload(self, name: str) -> None:
        """Reload a service as its unit says."""
        running = self.running[name]
        for line in running.unit.all("ExecReload"):
            self._run(running.unit, line, running.environment | {"MAINPID": str(running.process.pid)})

    def run_once(self, name: str, *more: str) -> str:
        """Run a unit that ends by itself; nobody is there to whom files could be given. What it printed."""
        unit = self.unit(name)
        assert unit.one("Type") == "oneshot"
        command = self._command(unit, unit.one("ExecStart"), dict(os.environ))
        command.remove("--chown")
        done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=STARTED_S, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def close(self) -> None:
        """End everything at once."""
        for running in self.running.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.process.pid, signal.SIGKILL)
        for running in self.running.values():
            running.process.wait()
        self.running.clear()

    def dead(self) -> dict[str, str]:
        """What has ended by itself, with the end of its log."""
        return {name: self.log(name)[-2000:] for name, each in self.running.items() if each.process.poll() is not None}

    def log(self, name: str) -> str:
        """What a service wrote."""
        return (self.root / f"{name}.log").read_text(errors="replace")

    def _command(self, unit: Unit, line: str, environment: dict[str, str]) -> list[str]:
        found = words(line, self._credentials_folder(unit))
        return [_substituted(word, environment) for word in found]

    def _run(self, unit: Unit, line: str, environment: dict[str, str]) -> None:
        if line.startswith("-/bin/systemctl"):
            return
        command = self._command(unit, line, environment)
        done = subprocess.run(
            command,
            env=environment,
            cwd=self._folder(unit),
            capture_output=True,
            text=True,
            timeout=STARTED_S,
            check=False,
        )
        assert done.returncode == 0, f"{unit.name}: {line}\n{done.stderr}\n{self.dead()}"

    def _folder(self, unit: Unit) -> Path:
        return Path(words(unit.one("WorkingDirectory"), Path())[0]) if unit.all("WorkingDirectory") else Path("/")

    def _credentials_folder(self, unit: Unit) -> Path:
        return self.root / "run/credentials" / unit.name

    def _credentials(self, unit: Unit) -> Path:
        """A copy of each credential for this unit alone, as systemd makes them."""
        folder = self._credentials_folder(unit)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, mode=0o700)
        for value in unit.all("LoadCredential"):
            name, _, source = words(value, folder)[0].partition(":")
            (folder / name).write_bytes(Path(source).read_bytes())
            (folder / name).chmod(0o440)
        return folder

    def _environment(self, unit: Unit, credentials: Path) -> dict[str, str]:
        """Nothing of this process's own environment is in it."""
        assignments = [word for value in unit.all("Environment") for word in words(value, credentials)]
        found = dict(assignment.split("=", 1) for assignment in assignments)
        for value in unit.all("EnvironmentFile"):
            for line in Path(words(value, credentials)[0]).read_text().splitlines():
                name, _, text = line.partition("=")
                found[name] = re.sub(r"\\(.)", r"\1", text.strip('"'))
        if unit.all("LoadCredential"):
            found["CREDENTIALS_DIRECTORY"] = str(credentials)
        return {"PATH": "/usr/bin:/bin", **found}


def _substituted(word: str, environment: dict[str, str]) -> str:
    """`$NAME` as a whole word is a variable, `$$` is a dollar sign (systemd.service(5), COMMAND LINES)."""
    if re.fullmatch(r"\$[A-Z_]+", word):
        return environment[word[1:]]
    return word.replace("$$", "$")


def until(seconds: float) -> Iterator[None]:
    """Look again and again; AssertionError when the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s")
