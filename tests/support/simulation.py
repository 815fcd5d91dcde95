"""The run of a simulated fleet: a bad release, then a good one, through outages and kills; what it took."""

from __future__ import annotations

import os
import random
import resource
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from ferryman.devices.broker import BrokerConfig
from ferryman.devices.fleet.rollout.drive import drive
from ferryman.devices.fleet.rollout.records import FAILURES, Plan, Progress, Thresholds, standing
from ferryman.devices.fleet.rollout.start import begin, cut, known_devices, make_plan, select
from ferryman.devices.fleet.rollout.store import RolloutStore
from ferryman.runtime.contracts.release import Release
from ferryman.runtime.contracts.slot import HealthRules
from tests.support.mosquitto import Mosquitto
from tests.support.packages import write_tiny_package
from tests.support.repository import make_repository
from tests.support.simulated import BAD, Fleet, spawn

PADDING_BYTES = 200_000
"""The size of a package, about: most of it is the same in all."""
OLD, GOOD = "add-1", "add-2"


@dataclass(frozen=True)
class Outcome:
    """What became of the fleet."""

    devices: int
    bad: Progress
    bad_asked: int
    bad_failed: int
    good: Progress
    good_stands: dict[str, int]
    serving: dict[str, int]
    """Package -> devices that serve it, all files verified."""
    bricked: tuple[str, ...]
    kills: int
    broker_outages: int
    bad_s: float
    good_s: float
    wire_bytes: int
    """Over all connections to the repository, both ways: metadata, heads and retries included."""
    full_bytes: int
    """What the good package alone takes, in full, for every device."""


def simulate(devices: int, *, processes: int = 4, dropped: float = 0.02, seed: int = 1, chaos: bool = True) -> Outcome:
    """Run it; everything lies in memory, where that can be had."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place, prefix="ferryman-fleet-") as name:
        folder = Path(name)
        made = make_repository(folder)
        padding = random.Random(seed).randbytes(PADDING_BYTES)  # noqa: S311  # no secret
        releases = {
            added: made.publish_tiny(added, str(number), padding=padding)
            for number, added in enumerate((1.0, 13.0, 2.0), 1)
        }
        server = spawn(["server", made.path, dropped if chaos else 0, 0], folder / "server.log")
        assert server.stdout is not None
        with Mosquitto(folder, "max_queued_messages 0\n") as broker:
            names = [f"d-{number}" for number in range(devices)]
            fleet = Fleet(names, folder / "devices", processes, broker.port, server.stdout.readline().strip())
            fleet.provision(write_tiny_package(folder / "old.ferry", added=1.0, padding=padding), made.root)
            try:
                fleet.start()
                outcome = _roll_out(fleet, broker, releases, folder, chaos=chaos, seed=seed)
                server.terminate()
                return replace(outcome, wire_bytes=int(server.communicate(timeout=60)[0]))
            finally:
                fleet.stop()
                server.kill()
                server.wait()
                server.stdout.close()


def _roll_out(
    fleet: Fleet, broker: Mosquitto, releases: dict[float, Release], folder: Path, *, chaos: bool, seed: int
) -> Outcome:
    store = RolloutStore(folder / "rollouts.sqlite")
    _all_there(broker.config, len(fleet.names))
    began = time.monotonic()
    bad_plan = _begin(store, releases[13.0], broker.config)
    _, bad = drive(store, bad_plan.id, broker.config)
    bad_s = time.monotonic() - began
    asked = [row for row in store.rows(bad_plan.id) if row.tries]
    failed = [one for one in store.log(bad_plan.id) if one.what in FAILURES]
    time.sleep(1.1)  # ids are of a second
    outages = _Outages(fleet, broker, seed)
    began = time.monotonic()
    plan = _begin(store, releases[2.0], broker.config)
    if chaos:
        outages.start()
    try:
        _, good = drive(store, plan.id, broker.config)
    finally:
        outages.stop()
    good_s = time.monotonic() - began
    stands = Counter(standing(row, plan, time.time_ns()) for row in store.rows(plan.id))
    store.close()
    fleet.stop()
    serving = fleet.serving()
    return Outcome(
        devices=len(fleet.names),
        bad=bad,
        bad_asked=len(asked),
        bad_failed=len(failed),
        good=good,
        good_stands=dict(stands),
        serving=dict(Counter(name for name in serving.values() if not name.startswith("bricked"))),
        bricked=tuple(f"{device} {name}" for device, name in serving.items() if name.startswith("bricked")),
        kills=fleet.kills,
        broker_outages=outages.broker_outages,
        bad_s=bad_s,
        good_s=good_s,
        wire_bytes=0,
        full_bytes=len(fleet.names) * releases[2.0].package_bytes,
    )


def _all_there(broker: BrokerConfig, devices: int) -> None:
    deadline = time.monotonic() + 120
    while sum(one.online for one in known_devices(broker, os.devnull)) < devices:
        assert time.monotonic() < deadline


def _begin(store: RolloutStore, release: Release, broker: BrokerConfig) -> Plan:
    plan = make_plan(
        release.name,
        release.package_sha256,
        "site=simulated",
        rings="1,10%,50%,100%",
        thresholds=Thresholds(failures_max="5%"),
        health=HealthRules(window_s=1.0, starts_max=20),
        soak_s=1.0,
        ring_timeout_s=300.0,
        parallel=100,
    )
    begin(store, plan, cut(plan, select(known_devices(broker, os.devnull), plan.query)))
    return plan


class _Outages:
    """Kills processes of devices and takes the broker away, at random."""

    def __init__(self, fleet: Fleet, broker: Mosquitto, seed: int) -> None:
        self._fleet, self._broker = fleet, broker
        self._chance = random.Random(seed)  # noqa: S311  # no secret
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.broker_outages = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._chance.uniform(3, 10)):
            if self._chance.random() < 0.25 and self.broker_outages < 3:
                self._broker.kill()
                time.sleep(self._chance.uniform(0.2, 1.5))
                self._broker.start()  # it has forgotten everything
                self.broker_outages += 1
            else:
                self._fleet.kill_and_start(self._chance.randrange(self._fleet.processes))


__all__ = ["BAD", "GOOD", "OLD", "Outcome", "simulate"]
