"""Fleet telemetry with a real mosquitto, QoS 1, deduplicated and committed: `python -m tests.benchmarks.telemetry`."""

from __future__ import annotations

import re
import subprocess
from importlib import metadata

from tests.benchmarks import telemetry_devices, telemetry_receive, telemetry_scale, telemetry_soak
from tests.benchmarks.frame import main
from tests.support import mosquitto

PARTS = (*telemetry_receive.PARTS, *telemetry_scale.PARTS, *telemetry_devices.PARTS, *telemetry_soak.PARTS)


def versions() -> dict[str, str]:
    """Of everything on the way."""
    found = {name: metadata.version(name) for name in ("paho-mqtt", "sqlalchemy", "psycopg")}
    done = subprocess.run([mosquitto.BINARY or "mosquitto", "-h"], capture_output=True, text=True, check=False)
    if number := re.search(r"\d+\.[\w.]+", done.stdout):
        found["mosquitto"] = number.group()
    return found


if __name__ == "__main__":
    main("telemetry", PARTS, versions)
