"""A simulated fleet of 1,000 devices: a bad release and a good one, through outages and kills."""

from __future__ import annotations

from collections.abc import Iterator

from tests.benchmarks.frame import Bar, CannotRun, Figure, Goal, Part, figure, progress
from tests.support import mosquitto
from tests.support.simulation import GOOD, OLD, simulate

DEVICES = 1000
BRICKED = Goal("fleet: devices bricked", "<=", 0, "devices")
WELL = Goal("fleet: devices on the desired or the previous good version", ">=", 1.0)
CANARY = Goal("fleet: share of devices a bad release was sent to", "<=", 0.01)
REACHED = Goal("fleet: devices that confirmed the good release", ">=", 0.99)


def measure() -> Iterator[Bar | Figure]:
    """Run it once; it takes some minutes."""
    if mosquitto.BINARY is None:
        raise CannotRun("mosquitto is not installed: apt-get install mosquitto")
    progress(f"rollouts to {DEVICES:,} simulated devices")
    found = simulate(DEVICES, processes=8)
    if found.bad.phase != "halted":
        raise AssertionError(f"the bad release was not halted: {found}")
    yield BRICKED.measured([len(found.bricked)])
    yield WELL.measured([(found.serving.get(GOOD, 0) + found.serving.get(OLD, 0)) / DEVICES])
    yield CANARY.measured([found.bad_asked / DEVICES])
    yield REACHED.measured([found.good_stands.get("confirmed", 0) / DEVICES])
    yield figure("  from the bad release's start to all back", [found.bad_s], "s")
    yield figure("  the good release to all", [found.good_s], "s")
    yield figure("  processes killed, each with its share of devices", [found.kills], "")
    yield figure("  broker outages", [found.broker_outages], "")
    yield figure("  bytes a device, all attempts and metadata", [found.wire_bytes / DEVICES], "bytes")
    yield figure("  bytes of the whole package", [found.full_bytes / DEVICES], "bytes")


PARTS = (Part((BRICKED, WELL, CANARY, REACHED), measure),)
