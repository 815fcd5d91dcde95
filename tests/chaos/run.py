"""One chaos run from beginning to end, and what came of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ferryman.runtime.contracts.errors import DeviceError
from tests.chaos import journal
from tests.chaos.faults import Event, Storm
from tests.chaos.oracle import Verdict, judge
from tests.chaos.scene import Device, Plan, Scene, keep, running
from tests.chaos.stores import Reader

CALM_FIRST = 0.05
"""So much of the samples comes before the first fault."""
SETTLE_MAX_S = 180.0
STALLED_S = 120.0
"""Without progress for so long, though faults are healed all the time, something hangs."""
_LOOK_S = 0.2
_TELL_S = 5.0


class Outcome(NamedTuple):
    """What is printed of a run."""

    plan: Plan
    seconds: float
    samples_s: float
    faults: dict[str, int]
    verdicts: list[Verdict]
    wrong: list[str]
    left_out: list[str]
    restarts: dict[str, list[int]]
    """Processes that ended by themselves and were started again, with their exit statuses."""
    broker_persistence: bool
    events: list[Event]

    def summary(self) -> dict[str, Any]:
        total = lambda name: sum(getattr(verdict, name) for verdict in self.verdicts)  # noqa: E731  # short
        counted = ("acknowledged", "stored", "own", "dropped", "missing", "late", "refused", "interrupted")
        return {
            **self.plan._asdict(),
            "ok": not self.wrong,
            "wrong": self.wrong,
            "seconds": round(self.seconds, 1),
            "samples_s": round(self.samples_s),
            **{name: total(name) for name in counted},
            "faults": self.faults,
            "left_out": self.left_out,
            "restarts": self.restarts,
            "broker_persistence": self.broker_persistence,
            "dropped_by_device": {verdict.device: verdict.dropped for verdict in self.verdicts},
        }


def run(plan: Plan, folder: Path) -> Outcome:
    """Let the storm rage while the samples flow, heal everything, wait until all is delivered, and judge."""
    with running(plan, folder) as scene:
        storm = Storm(plan.seed, plan.pace, scene.targets)
        began = time.monotonic()
        wrong = []
        if not _wait(scene, lambda: _appended(scene) >= CALM_FIRST * plan.samples, "first samples"):
            wrong.append("nothing flows, before any fault")
        storm.start()
        try:
            if not _wait(scene, lambda: _appended(scene) >= plan.samples or bool(storm.trouble), "samples"):
                wrong.append(f"samples stopped at {_appended(scene)} of {plan.samples}")
        finally:
            storm.calm()
        flowed_s = time.monotonic() - began
        # Only now are the outboxes looked into: that would mend what a kill left, in place of the device.
        if not _wait(scene, lambda: not any(_pending(d) for d in scene.devices), "delivery", SETTLE_MAX_S):
            waiting = {device.name: count for device in scene.devices if (count := _pending(device))}
            wrong.append(f"{SETTLE_MAX_S:g} s after the last fault these still wait: {waiting}")
        for process in scene.processes:
            process.end()
        verdicts, found = _judge(scene, storm)
        wrong += [*(f"harness: {one}" for one in storm.trouble), *found]
        wrong += [
            f"{process.name} ended by itself: exit statuses {process.ends}, see {process.log}"
            for device in scene.devices
            for process in device.processes
            if process.ends
        ]
        if wrong:
            keep(scene, folder)
    return Outcome(
        plan=plan,
        seconds=time.monotonic() - began,
        samples_s=plan.samples / flowed_s,
        faults=storm.counts(),
        verdicts=verdicts,
        wrong=wrong,
        left_out=sorted(set(scene.left_out)),
        restarts={process.name: process.ends for process in scene.processes if process.ends},
        broker_persistence=scene.persistent,
        events=sorted(storm.events),
    )


def _judge(scene: Scene, storm: Storm) -> tuple[list[Verdict], list[str]]:
    reader = Reader(scene.store)
    verdicts = []
    for device in scene.devices:
        appends = journal.read(Path(device.config.journal))
        faults = storm.intervals(device.name)
        verdicts.append(judge(device.name, appends, reader.records(device.name), device.end(), faults, device.rules))
    wrong = [one for verdict in verdicts for one in verdict.wrong]
    if strangers := set(reader.devices()) - {device.name for device in scene.devices}:
        wrong.append(f"records of devices that there are none of: {sorted(strangers)}")
    wrong += [f"quarantined: {one}" for one in reader.quarantine()]
    if damage := reader.damage():
        wrong.append(f"the store is damaged: {damage}")
    reader.close()
    return verdicts, wrong


def _appended(scene: Scene) -> int:
    return sum(device.appended() for device in scene.devices)


def _pending(device: Device) -> int:
    try:
        return device.end().pending
    except DeviceError:  # its process is just at it
        return 1


def _wait(scene: Scene, done: Callable[[], bool], what: str, limit_s: float = float("inf")) -> bool:
    """Wait, say how it goes, and give up where nothing moves any more."""
    began = moved = told = time.monotonic()
    last = None
    while not done():
        now = time.monotonic()
        appended = _appended(scene)
        if appended != last:
            last, moved = appended, now
        if now - began > limit_s or (now - moved > STALLED_S and limit_s == float("inf")):
            return False
        if now - told > _TELL_S:
            told = now
            print(f"{what}: {now - began:.0f} s, {appended} of {scene.plan.samples} appended", file=sys.stderr)
        scene.watch()
        if any(process.ends for device in scene.devices for process in device.processes):
            return False
        time.sleep(_LOOK_S)
    return True
