"""What the store wants done from time to time, on a thread of its own: rollups, retention, alerts."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ferryman.devices.fleet.collector.leader import Leader
from ferryman.runtime.contracts.errors import StoreError

log = logging.getLogger(__name__)

TICK_S = 5.0


class Chore(NamedTuple):
    """Something to be done by one collector of a store."""

    name: str
    every_s: float
    work: Callable[[int], object]
    """Given the time, Unix epoch in ns; may raise StoreError, and is tried again at its next time."""


class Housekeeping:
    """Does the chores while this collector leads; of several collectors of a store one does."""

    def __init__(
        self,
        leader: Leader,
        chores: Sequence[Chore],
        *,
        on_idle: Callable[[], None] = lambda: None,
        on_tick: Callable[[], None] = lambda: None,
    ) -> None:
        """Nothing is started yet.

        Args:
            leader: of whom one does it.
            chores: what is to be done.
            on_idle: called at each tick at which another collector leads, or nobody can be asked.
            on_tick: called at each tick, whoever leads; may raise StoreError.
        """
        self._leader = leader
        self._chores = chores
        self._due = dict.fromkeys((chore.name for chore in chores), 0.0)
        self._on_idle = on_idle
        self._on_tick = on_tick
        self._said: dict[str, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Finish what is being done, and let another collector lead."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._leader.release()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.turn(time.monotonic(), time.time_ns())
            self._stop.wait(TICK_S)

    def turn(self, monotonic_s: float, now_ns: int) -> None:
        """Do what is due."""
        if self._guarded("who leads", self._leader.leads):
            for chore in self._chores:
                if self._due[chore.name] <= monotonic_s and not self._stop.is_set():
                    self._due[chore.name] = monotonic_s + chore.every_s
                    self._guarded(chore.name, functools.partial(chore.work, now_ns))
        else:
            self._on_idle()
        self._guarded("counting", self._on_tick)

    def _guarded(self, what: str, work: Callable[[], object]) -> bool:
        """Whether it was done, and did not answer False; said once where it fails."""
        try:
            answer = work()
        except StoreError as error:
            if self._said.get(what) != str(error):
                log.warning("%s: %s; trying again", what, error)
            self._said[what] = str(error)
            return False
        except Exception:  # the thread would end, and nobody would see why nothing is done
            log.exception("%s: trying again", what)
            return False
        self._said.pop(what, None)
        return answer is not False
