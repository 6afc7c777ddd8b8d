"""Imported before grpc: no handlers of gRPC run when the test process forks.

A process that is started as another user is forked, not spawned, and with gRPC's handlers the copy of a process whose calls are under
way crashed before it became the other program, two times of five. It needs no gRPC: it becomes another program at once.
"""

from __future__ import annotations

import os

os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
