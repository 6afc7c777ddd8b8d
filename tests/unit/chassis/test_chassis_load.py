"""The load report: what it says of the last second, and how little it asks the system for."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.chassis.load import SAMPLE_S, WINDOW_S, LoadMeter, available_cores


class Process:
    """A process whose time and CPU time the test decides, and its meter."""

    def __init__(self, *, calls_max: int = 100, cores: float = 4.0) -> None:
        self.now_s = self.cpu_s = 0.0
        self.cpu_reads = 0
        self.meter = LoadMeter(calls_max=calls_max, cores=cores, now_s=0.0, cpu_clock=self._cpu)

    def _cpu(self) -> float:
        self.cpu_reads += 1
        return self.cpu_s

    def call(self, seconds: float, *, cpu_s: float = 0.0, failed: bool = False) -> dict[str, float]:
        """One call from beginning to end, and what is reported at its end."""
        self.meter.began(self.now_s)
        self.now_s += seconds
        self.cpu_s += cpu_s
        report = self.report()
        self.meter.ended(self.now_s, failed=failed)
        return report

    def report(self) -> dict[str, float]:
        text = self.meter.report(self.now_s)
        assert text.startswith("TEXT ")
        pairs = (pair.split("=") for pair in text.removeprefix("TEXT ").split(","))
        return {name: float(value) for name, value in pairs}


def test_an_idle_process_is_empty() -> None:
    process = Process()
    process.now_s = 5.0
    names = ("cpu_utilization", "application_utilization", "rps_fractional", "eps")
    assert process.report() == dict.fromkeys(names, 0.0)


def test_cpu_time_counts_against_the_cores_and_against_the_one_of_the_event_loop() -> None:
    process = Process(cores=4.0)
    for _ in range(20):
        report = process.call(SAMPLE_S, cpu_s=SAMPLE_S / 2)
    assert report["cpu_utilization"] == pytest.approx(0.125, abs=0.001)
    assert report["application_utilization"] == pytest.approx(0.5, abs=0.001)


def test_running_calls_count_against_their_limit() -> None:
    process = Process(calls_max=10)
    for _ in range(5):
        process.meter.began(process.now_s)
    process.now_s = WINDOW_S
    assert process.report()["application_utilization"] == pytest.approx(0.5)


def test_calls_and_failures_are_counted_by_the_second() -> None:
    process = Process()
    for number in range(200):
        report = process.call(0.02, failed=number % 4 == 0)
    assert report["rps_fractional"] == pytest.approx(50, rel=0.1)
    assert report["eps"] == pytest.approx(12.5, rel=0.2)


def test_what_was_long_ago_is_forgotten() -> None:
    process = Process()
    for _ in range(20):
        process.call(SAMPLE_S, cpu_s=SAMPLE_S)
    for _ in range(15):
        report = process.call(SAMPLE_S)
    assert report["cpu_utilization"] == 0.0


def test_a_burst_after_a_pause_is_seen_at_once() -> None:
    process = Process()
    process.now_s = 3_600.0
    process.report()
    report = process.call(2 * SAMPLE_S, cpu_s=2 * SAMPLE_S)
    assert report["application_utilization"] == pytest.approx(1.0, abs=0.001)


def test_the_system_is_asked_ten_times_a_second_however_many_calls_there_are() -> None:
    process = Process()
    for _ in range(10_000):
        process.call(0.0001)
    assert process.cpu_reads <= 1 + 1.0 / SAMPLE_S


@pytest.mark.parametrize(("content", "cores"), [("max 100000", None), ("50000 100000", 0.5), (None, None)])
def test_a_containers_quota_counts(tmp_path: Path, content: str | None, cores: float | None) -> None:
    file = tmp_path / "cpu.max"
    if content is not None:
        file.write_text(content + "\n")
    assert available_cores(file) == (cores or available_cores(tmp_path / "nothing"))
