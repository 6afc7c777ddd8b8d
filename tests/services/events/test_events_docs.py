"""The example of docs/events.md, as somebody would run it who has nothing but NATS and the protos."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from services.events.bus import EventBus
from support.events import SETTLED, event, events
from support.nats_server import NatsServer

ROOT = Path(__file__).resolve().parents[3]


async def test_the_example_hears_what_was_published(
    bus: EventBus, nats: NatsServer, stream: str, tmp_path: Path
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "events.md").read_text(), re.DOTALL)
    await bus.publish_batch([*events(range(3)), event(9, type="nipmesh.invoice.v1.open"), event(4, type=SETTLED)])
    (tmp_path / "example.py").write_text(example)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "protos"),
        "NIPMESH_EVENTS_URL": nats.url,
        "NIPMESH_EVENTS_STREAM": stream,
    }
    done = subprocess.run(  # noqa: ASYNC221  # nothing else runs meanwhile
        [sys.executable, "example.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    told = [line.split()[1] for line in done.stdout.splitlines()]
    assert told == ["invoice-0", "invoice-1", "invoice-2", "invoice-4"]
