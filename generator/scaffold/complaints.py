"""What protoc says against .proto files, as findings that point into them."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from generator.catalog.catalog import COMPLAINT, COMPLAINTS_MAX, fix_of
from generator.manifest.finding import START, Finding, Position, Reporter


def findings_of(complaints: str, base: Path, roots: tuple[PurePosixPath, ...]) -> tuple[Finding, ...]:
    """One finding for each of protoc's lines, up to COMPLAINTS_MAX; one for all of them when none names a place."""
    matches = [match for line in complaints.splitlines() if (match := COMPLAINT.fullmatch(line)) is not None]
    found: list[Finding] = []
    for match in [match for match in matches if not match["text"].startswith("warning:")][:COMPLAINTS_MAX]:
        file = _file(match["path"], base, roots)
        shown = str(file.relative_to(base)) if file.is_relative_to(base) else match["path"]
        reporter = Reporter(path=shown, lines=_lines(file))
        place = Position(line=int(match["line"]), column=int(match["column"]))
        reporter.report("NM202", place, match["text"], cause="protoc refuses this line", fix=fix_of(match["text"]))
        found += reporter.findings
    if not found:
        reporter = Reporter(path=str(roots[0]), lines=())
        cause = "; ".join(complaints.splitlines()[:COMPLAINTS_MAX]) or "protoc said nothing"
        reporter.report("NM202", START, "the protobuf files do not compile", cause=cause, fix="correct the files")
        found += reporter.findings
    return tuple(found)


def _file(name: str, base: Path, roots: tuple[PurePosixPath, ...]) -> Path:
    """The file that protoc means: it names some by their path and some by that below their root."""
    candidates = (base / root / name for root in roots)
    return next((path for path in candidates if path.is_file()), Path(name))


def _lines(file: Path) -> tuple[str, ...]:
    try:
        return tuple(file.read_text(encoding="utf-8", errors="replace").splitlines())
    except OSError:
        return ()
