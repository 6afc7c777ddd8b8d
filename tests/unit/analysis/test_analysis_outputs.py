"""What an output cannot do with a manifest, and volumes that are not there: a finding with the line, instead of less than was written."""

from __future__ import annotations

from pathlib import Path

import pytest

from generator.analysis import Analysis, Output, check_manifest
from generator.manifest import Severity

RUN = ("run: python -m orders", "run: python -m orders\n    {}")
IMAGES = (
    ("run: python -m orders", "run: python -m orders\n    image: orders:1\n    probe: {command: /check}"),
    ("run: python -m stock", "run: python -m stock\n    image: stock:1\n    probe: {command: /check}"),
)
LISTED = ("mesh: shop", "mesh: shop\nvolumes: [cache]")


def orders(text: str) -> tuple[str, str]:
    return RUN[0], RUN[1].format(text)


def named(volume: str) -> tuple[str, str]:
    return "mesh: shop", f"mesh: shop\nvolumes: [{volume}]"


def for_output(tmp_path: Path, output: Output, analysis: Analysis) -> list[tuple[str, Severity, int, str]]:
    """What is found beyond what is found anyway."""
    known = {str(finding) for finding in analysis.findings}
    found = check_manifest(tmp_path / "mesh.yaml", output=output).findings
    return [(one.code, one.severity, one.line, one.message) for one in found if str(one) not in known]


def test_a_container_needs_an_image_and_should_say_how_it_is(tmp_path, check) -> None:
    found = for_output(tmp_path, Output.COMPOSE, check())
    assert [(code, severity, line) for code, severity, line, _ in found] == [
        ("NM609", Severity.NOTE, 4),
        ("NM613", Severity.ERROR, 4),
        ("NM609", Severity.NOTE, 9),
        ("NM613", Severity.ERROR, 9),
    ]
    assert "`orders` has no image" in found[1][3]
    assert check_manifest(tmp_path / "mesh.yaml", output=Output.COMPOSE).mesh is None
    assert for_output(tmp_path, Output.UP, check()) == []


def test_with_images_and_probes_there_is_nothing_to_say(tmp_path, check) -> None:
    assert for_output(tmp_path, Output.COMPOSE, check(*IMAGES)) == []
    assert for_output(tmp_path, Output.UP, check(*IMAGES)) == []


def test_a_version_has_the_image_of_its_service(tmp_path, check) -> None:
    version = ("gateway:", "  orders-next:\n    version_of: orders\n    run: python -m orders\ngateway:")
    assert for_output(tmp_path, Output.COMPOSE, check(*IMAGES, version)) == []


@pytest.mark.parametrize(
    ("change", "line", "words"),
    [
        (
            ("serves: [stock.v1.StockService]", "serves: [stock.v1.StockService]\n    cwd: protos"),
            16,
            "its image's folder",
        ),
        (("mesh: shop", "mesh: shop\ntelemetry: {otlp: '127.0.0.1:4317'}"), 2, "the collector of traces"),
        (("mesh: shop", "mesh: shop\nevents: {url: 'nats://localhost:4222'}"), 2, "the cluster of events"),
    ],
    ids=["cwd", "collector", "events"],
)
def test_what_no_container_finds(tmp_path, check, change, line, words) -> None:
    ((code, severity, found, message),) = for_output(tmp_path, Output.COMPOSE, check(*IMAGES, change))
    assert (code, severity, found) == ("NM609", Severity.WARNING, line)
    assert words in message


def test_a_certificate_of_the_gateway_has_to_be_mounted(tmp_path, check) -> None:
    tls = ("gateway:\n", "gateway:\n  tls: {certificate: a.crt, private_key: a.key}\n")
    found = for_output(tmp_path, Output.COMPOSE, check(*IMAGES, tls))
    assert [(code, severity, line) for code, severity, line, _ in found] == [("NM609", Severity.WARNING, 17)] * 2
    assert ["a.crt" in message or "a.key" in message for *_, message in found] == [True, True]


def test_a_file_for_a_host_outside_has_to_be_mounted(tmp_path, check) -> None:
    outside = ("gateway:\n", "external:\n  rates: {address: 'rates.example.org:443', tls: {ca: a.ca}}\ngateway:\n")
    (found,) = for_output(tmp_path, Output.COMPOSE, check(*IMAGES, outside))
    assert (found[0], found[2]) == ("NM609", 17)


def test_processes_of_this_machine_have_no_volumes_and_no_limits(tmp_path, check) -> None:
    (tmp_path / "rates").mkdir(exist_ok=True)
    written = orders("volumes: ['./rates:/rates:ro']\n    resources: {cpu: 500m}")
    found = for_output(tmp_path, Output.UP, check(written))
    assert [(code, severity, line) for code, severity, line, _ in found] == [
        ("NM609", Severity.WARNING, 6),
        ("NM609", Severity.WARNING, 7),
    ]


@pytest.mark.parametrize(
    ("changes", "severity", "line", "words"),
    [
        ([orders("volumes: ['cache:/cache']")], Severity.ERROR, 6, "there is no volume"),
        ([LISTED, orders("volumes: ['cahce:/cache']")], Severity.ERROR, 7, "there is no volume"),
        ([orders("volumes: ['./nowhere:/cache']")], Severity.ERROR, 6, "has nothing to show"),
        (
            [("mesh: shop", "mesh: shop\nvolumes: [cache, cache]"), orders("volumes: ['cache:/c']")],
            Severity.ERROR,
            2,
            "twice",
        ),
        ([LISTED, orders("volumes: ['cache:/run/nipmesh/x']")], Severity.ERROR, 7, "may not be at"),
        ([LISTED, orders("volumes: ['cache:/run']")], Severity.ERROR, 7, "may not be at"),
        ([LISTED, orders("volumes: ['cache:/a', './protos:/a']")], Severity.ERROR, 7, "two volumes at"),
        ([LISTED], Severity.WARNING, 2, "nobody uses volume"),
        ([named("orders-data")], Severity.ERROR, 2, "is nipmesh's"),
        ([named("orders-12-sockets")], Severity.ERROR, 2, "is nipmesh's"),
        ([named("postgresql")], Severity.ERROR, 2, "is nipmesh's"),
    ],
    ids=[
        "unlisted",
        "misspelt",
        "no-folder",
        "twice",
        "ours",
        "above-ours",
        "two-at-one",
        "unused",
        "data",
        "sockets",
        "server",
    ],
)
def test_volumes_that_cannot_be(check, changes, severity, line, words) -> None:
    found = [one for one in check(*changes).findings if one.code == "NM612"]
    assert [(one.severity, one.line) for one in found if words in one.message] == [(severity, line)]


@pytest.mark.parametrize("volume", ["orders", "orders-cache", "myevents", "data"])
def test_a_volume_with_a_name_of_its_own(check, volume) -> None:
    assert check(named(volume), orders(f"volumes: ['{volume}:/cache']")).mesh is not None


def test_a_misspelt_volume_is_guessed(check) -> None:
    (found,) = [
        one for one in check(LISTED, orders("volumes: ['cahce:/c']")).findings if one.severity is Severity.ERROR
    ]
    assert "cache" in found.fix


def test_volumes_that_are_there(tmp_path, check) -> None:
    (tmp_path / "rates").mkdir()
    analysis = check(LISTED, orders("volumes: ['cache:/cache', './rates:/etc/rates:ro']"))
    assert analysis.findings == check().findings
    assert analysis.mesh is not None


def test_units_have_no_probes_and_read_variables_in_their_own_way(tmp_path, check) -> None:
    (tmp_path / "a.env").write_text("# mine\nexport A=b\n")
    (tmp_path / "b.env").write_text("A=b # export\n")
    written = orders("env_file: a.env\n    probe: {interval: 5s}")
    found = for_output(tmp_path, Output.SYSTEMD, check(written))
    assert [(code, severity, line) for code, severity, line, _ in found] == [
        ("NM609", Severity.WARNING, 6),
        ("NM609", Severity.NOTE, 7),
    ]
    assert for_output(tmp_path, Output.SYSTEMD, check(orders("env_file: b.env"))) == []
