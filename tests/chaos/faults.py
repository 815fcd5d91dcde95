"""What goes wrong, and when: all from one seed, whatever the machine does meanwhile.

Each target has its own sequence of chances and its own thread, so that faults overlap, and none waits for those of
another target.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

Heal = Callable[[], None]
Begin = Callable[[random.Random], Heal]
"""Starts a fault and returns what ends it."""

SETTLE_S = 6.0
"""So long after a fault its effects may still show: a link waits before it connects again, a publisher resends."""


class Kind(NamedTuple):
    """One way in which a target fails."""

    weight: float
    lasts_s: tuple[float, float]


class Habit(NamedTuple):
    """How often a target fails, and how."""

    every_s: float
    """Mean of an exponential distribution."""
    kinds: Mapping[str, Kind]


HABITS: dict[str, Habit] = {
    "broker": Habit(30, {"kill": Kind(4, (0, 1.5)), "freeze": Kind(1, (0.2, 3)), "stop": Kind(1, (0, 1))}),
    "collector": Habit(20, {"kill": Kind(5, (0, 1.5)), "freeze": Kind(1, (0.2, 3)), "stop": Kind(1, (0, 1))}),
    "device": Habit(30, {"kill": Kind(5, (0, 1)), "freeze": Kind(1, (0.2, 3))}),
    "agent": Habit(30, {"kill": Kind(5, (0, 1)), "freeze": Kind(1, (0.2, 3))}),
    "link": Habit(30, {"cut": Kind(3, (0.1, 4)), "slow": Kind(1, (1, 3))}),
    "database": Habit(
        25, {"kill": Kind(2, (0, 1)), "kill-backend": Kind(2, (0, 0)), "stop-immediate": Kind(1, (0, 1))}
    ),
    "store-disk": Habit(40, {"fill": Kind(1, (0.5, 4))}),
    "outbox-disk": Habit(30, {"fill": Kind(1, (0.5, 4)), "fill-and-cut": Kind(2, (1, 6))}),
    "clock": Habit(10, {"jump": Kind(1, (0, 0))}),
}
"""By the first part of a target's name, before a colon. A link counts a connection that held for less than 5 s as a
failed one, and waits longer and longer: were faults much closer together, all would be waiting."""
_OF_ONE = {"device", "agent", "link", "outbox-disk"}
"""Targets that are parts of one device."""


class Fault(NamedTuple):
    """One that is planned."""

    after_s: float
    """Since the target was last healed."""
    kind: str
    lasts_s: float
    seed: int
    """For what else is left to chance in it."""


def plan(seed: int, target: str, pace: float) -> Iterator[Fault]:
    """What befalls a target, without end; `pace` below 1 makes it come sooner."""
    habit = HABITS[target.partition(":")[0]]
    chance = random.Random(f"{seed}/{target}")  # noqa: S311  # no secret
    names = list(habit.kinds)
    while True:
        after_s = chance.expovariate(1 / habit.every_s) * pace
        (kind,) = chance.choices(names, [habit.kinds[name].weight for name in names])
        yield Fault(after_s, kind, chance.uniform(*habit.kinds[kind].lasts_s) * pace**0.5, chance.getrandbits(32))


class Event(NamedTuple):
    """What was done, and from when to when, Unix epoch."""

    start_ns: int
    end_ns: int
    target: str
    kind: str


class Storm:
    """Has faults befall the targets from `start` to `calm`; then everything is healed."""

    def __init__(self, seed: int, pace: float, targets: Mapping[str, Mapping[str, Begin]]) -> None:
        self.events: list[Event] = []
        self.trouble: list[str] = []
        """What went wrong with the harness itself."""
        self._targets = targets
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._befall, args=(name, plan(seed, name, pace)), name=name) for name in targets
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def calm(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def counts(self) -> dict[str, int]:
        return dict(sorted(Counter(f"{e.target.partition(':')[0]} {e.kind}" for e in self.events).items()))

    def intervals(self, device: str) -> list[tuple[int, int]]:
        """Times in which something was wrong between a device and the store, joined where they overlap."""
        joined: list[tuple[int, int]] = []
        for event in sorted(self.events):
            what, _, whose = event.target.partition(":")
            if what == "clock" or (what in _OF_ONE and (whose or what) != device):
                continue
            end_ns = event.end_ns + int(SETTLE_S * 1e9)
            if joined and event.start_ns <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(joined[-1][1], end_ns))
            else:
                joined.append((event.start_ns, end_ns))
        return joined

    def _befall(self, name: str, faults: Iterator[Fault]) -> None:
        try:
            for fault in faults:
                if self._over.wait(fault.after_s):
                    return
                start_ns = time.time_ns()
                heal = self._targets[name][fault.kind](random.Random(fault.seed))  # noqa: S311  # no secret
                self._over.wait(fault.lasts_s)
                heal()
                self.events.append(Event(start_ns, time.time_ns(), name, fault.kind))
        except Exception as error:  # noqa: BLE001  # told at the end
            self.trouble.append(f"{name}: {type(error).__name__}: {error}")
