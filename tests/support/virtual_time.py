"""Time that passes only when everyone waits, and synthetic sensors in it whose true energy is known."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ferryman.profiler.energy import measure_energy
from ferryman.profiler.samplers.base import Reading, Unwrapped
from ferryman.profiler.sysfs import SensorError
from ferryman.runtime.contracts.energy import Energy, EnergySource
from ferryman.runtime.contracts.record import Unavailable

NO = Unavailable(reason="not stated")
RUN_S = 0.013
SENSORS: dict[str, dict[str, Any]] = {
    "constant": {"unit": "W", "step": 0.005},
    "sine": {"unit": "W", "sine_w": 0.5},
    "steps": {"unit": "W", "step_w": 0.6, "step": 0.005},
    "noise": {"unit": "W", "noise_w": 0.1},
    "everything": {"unit": "W", "sine_w": 0.3, "step_w": 0.3, "noise_w": 0.05, "step": 0.005, "uncertainty": 0.004},
    "renewed seldom": {"unit": "W", "noise_w": 0.03, "renewed_s": 0.4, "period_s": 0.1},
    "counter": {"unit": "J", "step": 61e-6, "renewed_s": 1e-3, "period_s": 0.5, "sine_w": 1.0, "step_w": 1.0},
    "counter that wraps": {"unit": "J", "step": 61e-6, "span_steps": 150_000, "period_s": 0.5, "step_w": 1.0},
    "coarse counter": {"unit": "J", "step": 0.2, "renewed_s": 0.05, "period_s": 0.1, "uncertainty": 0.004},
}


class VirtualTime:
    """Of the thread that runs and the one that reads, which is named `energy`."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000
        self._changed = threading.Condition()
        self._targets: dict[int, int] = {}

    def clock_ns(self) -> int:
        return self.now_ns

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """As threading.Event.wait."""
        me = threading.get_ident()
        with self._changed:
            target_ns = self.now_ns + round(seconds * 1e9)
            while self.now_ns < target_ns and not event.is_set():
                self._targets[me] = target_ns
                if len(self._targets) > any(thread.name == "energy" for thread in threading.enumerate()):
                    self.now_ns = min(self._targets.values())
                    due = [who for who, when in self._targets.items() if when <= self.now_ns]
                    for who in due:
                        del self._targets[who]
                    self._changed.notify_all()
                else:
                    self._changed.wait(0.001)  # events that are set wake nobody here
            self._targets.pop(me, None)
        return event.is_set()

    def sleep(self, seconds: float) -> None:
        self.wait(threading.Event(), seconds)


class Load:
    """Power over time: a level, a sine, and steps up and down at random moments; its integral in closed form."""

    def __init__(self, rng: np.random.Generator, *, level_w: float, sine_w: float = 0.0, step_w: float = 0.0) -> None:
        self.level_w, self.sine_w, self.step_w = level_w, sine_w, step_w
        self.hz = float(rng.uniform(0.05, 8))
        self.phase = float(rng.uniform(0, 2 * np.pi))
        self.edges_s = np.concatenate([[0.0], np.cumsum(rng.exponential(0.7, size=1000))])
        high = np.arange(1001) % 2
        self._below_j = np.concatenate([[0.0], np.cumsum(np.diff(self.edges_s) * high[:-1])])

    def power_w(self, t_s: float) -> float:
        high = (int(np.searchsorted(self.edges_s, t_s, side="right")) - 1) % 2
        return self.level_w + self.sine_w * float(np.sin(2 * np.pi * self.hz * t_s + self.phase)) + self.step_w * high

    def joules_until(self, t_s: float) -> float:
        index = int(np.searchsorted(self.edges_s, t_s, side="right")) - 1
        high_s = self._below_j[index] + (index % 2) * (t_s - self.edges_s[index])
        turn = 2 * np.pi * self.hz
        sine = (np.cos(self.phase) - np.cos(turn * t_s + self.phase)) / turn
        return float(self.level_w * t_s + self.sine_w * sine + self.step_w * high_s)


class Bench:
    """A device that takes `idle` until it runs, then `active`; the sensor beside it, and what was really taken."""

    def __init__(self, time: VirtualTime, idle: Load, active: Load) -> None:
        self.time, self.idle, self.active = time, idle, active
        self.began_ns: int | None = None
        self.ended_ns = 0
        self.runs = 0

    def run(self, seconds: float) -> None:
        if self.began_ns is None:
            self.began_ns = self.time.now_ns
        self.time.sleep(seconds)
        self.ended_ns = self.time.now_ns
        self.runs += 1

    def power_w(self) -> float:
        load = self.idle if self.began_ns is None else self.active
        return load.power_w(self.time.now_ns / 1e9)

    def joules(self, t_ns: int) -> float:
        if self.began_ns is None or t_ns < self.began_ns:
            return self.idle.joules_until(t_ns / 1e9)
        before = self.idle.joules_until(self.began_ns / 1e9) - self.active.joules_until(self.began_ns / 1e9)
        return before + self.active.joules_until(t_ns / 1e9)

    @property
    def true_gross_j(self) -> float:
        assert self.began_ns is not None
        return (self.joules(self.ended_ns) - self.joules(self.began_ns)) / self.runs

    @property
    def true_net_j(self) -> float:
        """Idle is a constant level here."""
        assert self.began_ns is not None
        return self.true_gross_j - self.idle.level_w * (self.ended_ns - self.began_ns) / 1e9 / self.runs


class SyntheticSensor:
    """Implements `Sampler`: noise, a gain that is a little wrong, steps, renewal, a span that it wraps at."""

    settle_s = 0.0

    def __init__(
        self,
        bench: Bench,
        rng: np.random.Generator,
        unit: Literal["W", "J"],
        *,
        period_s: float = 0.02,
        noise_w: float = 0.0,
        step: float = 0.0,
        renewed_s: float = 0.0,
        span_steps: int = 0,
        uncertainty: float = 0.0,
        fails: Sequence[int] = (),
    ) -> None:
        self.bench, self.rng, self.period_s = bench, rng, period_s
        self.noise_w, self.step, self.renewed_s = noise_w, step, renewed_s
        self.gain = 1 + uncertainty * float(rng.normal()) / 1.96
        self.fails = set(fails)
        self.reads = 0
        self.closed = False
        self._held: tuple[int, float] | None = None
        self._span = span_steps
        self._counter: Unwrapped | None = None
        self.source = EnergySource(
            name="synthetic",
            rails=("all",),
            unit=unit,
            resolution=step or NO,
            renewed_s=renewed_s or 1e-3,
            uncertainty=uncertainty or NO,
        )

    def read(self) -> Sequence[Reading]:
        self.reads += 1
        if self.reads in self.fails:
            raise SensorError("the sensor is gone")
        return ((self.bench.time.now_ns, self._joules() if self.source.unit == "J" else self._watts()),)

    def close(self) -> None:
        self.closed = True

    def _watts(self) -> float:
        tick = self._tick()
        if self._held is None or self._held[0] != tick:
            watts = self.gain * self.bench.power_w() + self.noise_w * float(self.rng.normal())
            self._held = (tick, round(watts / self.step) * self.step if self.step else watts)
        return self._held[1]

    def _joules(self) -> float:
        joules = self.gain * self.bench.joules(self._tick())
        raw = int(joules / self.step)
        if not self._span:
            return raw * self.step
        if self._counter is None:
            self._counter = Unwrapped("synthetic", self._span, raw % self._span)
        return self._counter.add(raw % self._span) * self.step

    def _tick(self) -> int:
        """The moment of the last renewal."""
        now_ns = self.bench.time.now_ns
        every_ns = round(self.renewed_s * 1e9)
        return now_ns // every_ns * every_ns if every_ns else now_ns


def measured(
    seed: int, *, run_s: float = RUN_S, idle_s: float = 10.0, window_s: float = 10.0, **sensor: Any
) -> tuple[Energy | Unavailable, Bench, SyntheticSensor]:
    """The whole chain in virtual time: (what it found, what was really taken, the sensor)."""
    rng = np.random.default_rng(seed)
    clock = VirtualTime()
    load = {name: sensor.pop(name, 0.0) for name in ("sine_w", "step_w")}
    idle_w, active_w = float(rng.uniform(1.5, 2.5)), float(rng.uniform(3.0, 4.0))
    bench = Bench(clock, Load(rng, level_w=idle_w), Load(rng, level_w=active_w, **load))
    probe = SyntheticSensor(bench, rng, **sensor)
    found = measure_energy(
        probe, lambda: bench.run(run_s), idle_s=idle_s, window_s=window_s, clock_ns=clock.clock_ns, wait=clock.wait
    )
    return found, bench, probe
