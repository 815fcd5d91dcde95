"""Fleet telemetry with a real mosquitto, QoS 1, deduplicated and committed: `python -m tests.benchmarks.telemetry`."""

from __future__ import annotations

from tests.benchmarks import telemetry_receive
from tests.benchmarks.frame import main

PARTS = (*telemetry_receive.PARTS,)

if __name__ == "__main__":
    main("telemetry", PARTS)
