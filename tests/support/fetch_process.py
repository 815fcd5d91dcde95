"""A device's fetch as a process of its own; prints what it took.

python -m tests.support.fetch_process ROOT NAME CONFIG, the last an `UpdateConfig` as JSON.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from pathlib import Path

import msgspec

from ferryman.devices.agent.update.client import UpdateClient
from ferryman.devices.agent.update.config import UpdateConfig


def peak_kb() -> int:
    """Of this process since it was executed; getrusage would count what it was forked from."""
    read = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert read
    return int(read[1])


def main() -> None:
    root, name, config = Path(sys.argv[1]), sys.argv[2], msgspec.json.decode(sys.argv[3], type=UpdateConfig)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # who starts things in the background may ignore it
    began = time.monotonic()
    with UpdateClient(root, config) as client:
        release = client.check(name)
        ready_kb = peak_kb()
        staged = client.fetch(release)
        found = {
            "wire_bytes": staged.wire_bytes,
            "planned_bytes": staged.planned_bytes,
            "retries": client.retries,
            "seconds": time.monotonic() - began,
            "ready_kb": ready_kb,
            "peak_kb": peak_kb(),
        }
    print(json.dumps(found), flush=True)


main()
