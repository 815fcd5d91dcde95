"""What clients a collector could have cost, storing nothing: `python -m tests.benchmarks.telemetry_clients`.

Not one of the bars: the choice in docs/telemetry/collector.md rests on it. gmqtt and aiomqtt are taken in if installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from tests.benchmarks.frame import Bar, Figure, Part, figure, interleave, main, progress
from tests.benchmarks.telemetry_receive import load, received_per_s
from tests.support.receivers import BARE

ROUNDS = 3
_NEEDS = {"gmqtt": "gmqtt", "aiomqtt": "aiomqtt"}


def measure() -> Iterator[Bar | Figure]:
    """All in turn; CPU time tells more than the rate, which the broker shares in."""
    clients = [name for name in BARE if find_spec(_NEEDS.get(name, "paho")) is not None]
    with load(messages=100, samples=1) as what:
        progress(f"{what.total:,} messages to each of {', '.join(clients)}, {ROUNDS} times")
        cpu: dict[str, list[float]] = {name: [] for name in clients}
        rates = interleave(ROUNDS, *(lambda name=name: received_per_s(what, name, cpu[name]) for name in clients))
    for name, values in zip(clients, rates, strict=True):
        yield figure(f"{name}: received", values, "messages/s")
        yield figure(f"{name}: CPU a message", cpu[name], "us")


if __name__ == "__main__":
    main("telemetry_clients", (Part((), measure),))
