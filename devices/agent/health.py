"""How the package that serves does: what a trial is judged by.

Counted by a monotonic clock from when this process first saw the package, so the window is one without a break. Where
nobody asks, the golden vectors are run now and then; what they show stands apart from what was served.
"""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ferryman.devices.agent.probe import CALLS, Answers, distance, holds, run_before, vectors_of
from ferryman.devices.agent.serving import HANG_S, Serving, Watch, picked
from ferryman.devices.agent.tally import Reservoir
from ferryman.profiler.drift_distance import distances
from ferryman.runtime.contracts.drift import Drift
from ferryman.runtime.contracts.errors import CallerError, DeviceError, FerrymanError
from ferryman.runtime.contracts.manifest import GoldenVector, Variant
from ferryman.runtime.contracts.messages import InferReply, InferRequest
from ferryman.runtime.contracts.rollout import Health
from ferryman.runtime.contracts.slot import SlotState
from ferryman.runtime.slots import Installed, SlotStore

log = logging.getLogger(__name__)

PROBE_S = 5.0
"""So long nobody asks before the golden vectors run, and again."""
_SERVED_MIN = 5
"""Fewer requests tell nothing of latency."""
_INFERENCES_MIN = 100
"""Fewer tell nothing of drift: values of one inference resemble each other."""
_RECORDS_MAX = 16
_AHEAD_S = 0.5


@dataclass
class _Tally:
    """One package, since this process saw it first."""

    package_sha256: str
    began: float
    served: Reservoir = field(default_factory=Reservoir)
    failed: int = 0
    probed: Reservoir = field(default_factory=Reservoir)
    probes: int = 0
    probes_failed: int = 0
    drift: float | None = None
    """On the golden inputs."""
    records: list[Drift] = field(default_factory=list)
    told_drift: bool = False
    """Whether `wants_drift` said so already."""


class HealthWatch:
    """Counts; safe to use from several threads, but for `idle`, which is the serving thread's."""

    def __init__(
        self, store: SlotStore, clock: Callable[[], float] = time.monotonic, *, also: Watch | None = None
    ) -> None:
        """Nothing is counted yet.

        Args:
            store: the slot store.
            clock: a monotonic one.
            also: is told of what was served, the golden vectors left out.
        """
        self._store, self._clock, self._also = store, clock, also
        self._lock = threading.Lock()
        self._tally: _Tally | None = None
        self._state = SlotState()
        self._earlier: list[Drift] = []
        """Of the package before, newest last."""
        self._asked = self._probed = clock()
        self._probing = False
        self._before: tuple[tuple[str, str], Answers | None] | None = None
        """The package on trial, the variant of it, and what the package before answers to its golden inputs."""

    def follow(self, state: SlotState) -> None:
        """Take in which slots count; a package that serves newly begins at zero, and so does a new trial.

        `health` and `idle` do it themselves; sooner is better, for a request that comes before is not counted.
        """
        with self._lock:
            old, self._state = self._state, state
            tally, active = self._tally, state.active
            if active is None:
                self._tally = None
            elif tally is None or tally.package_sha256 != active.package_sha256:
                if tally is not None and tally.records:
                    self._earlier = tally.records
                self._tally = _Tally(active.package_sha256, self._clock())
            elif state.trial is not None and (old.trial is None or old.trial.began_at_ns != state.trial.began_at_ns):
                self._tally = _Tally(active.package_sha256, self._clock())

    def answered(self, package_sha256: str, latency_ns: int) -> None:
        """See `Watch`."""
        with self._mine(package_sha256) as tally:
            if self._probing:
                return
            self._asked = self._clock()
            if tally:
                tally.served.add(latency_ns)
            if self._also:
                self._also.answered(package_sha256, latency_ns)

    def failed(self, package_sha256: str) -> None:
        """See `Watch`."""
        with self._mine(package_sha256) as tally:
            if self._probing:
                return
            self._asked = self._clock()
            if tally:
                tally.failed += 1
            if self._also:
                self._also.failed(package_sha256)

    def saw_drift(self, records: Sequence[Drift]) -> None:
        """Take in drift statistics, of the package that serves or the one before it."""
        with self._lock:
            for record in records:
                mine = self._tally is not None and record.package_sha256 == self._tally.package_sha256
                kept = self._tally.records if self._tally and mine else self._earlier
                kept[:] = [one for one in (*kept, record) if one.package_sha256 == record.package_sha256][
                    -_RECORDS_MAX:
                ]

    def wants_drift(self) -> bool:
        """Whether a trial that asks for drift is about over: once, when statistics of what was served must be ended.

        Raises:
            DeviceError: the store cannot be read.
        """
        self.follow(self._store.read_state())
        with self._lock:
            tally, trial = self._tally, self._state.trial
            if tally is None or trial is None or trial.rules.drift_max is None or tally.told_drift:
                return False
            tally.told_drift = self._clock() - tally.began >= trial.rules.window_s - _AHEAD_S
            return tally.told_drift

    def idle_s(self) -> float:
        """How long nobody has asked for an inference."""
        return self._clock() - self._asked

    def latency_ns(self) -> int | None:
        """Median of the served calls of the package that serves; None: too few. For a trial's `before_latency_ns`."""
        with self._lock:
            return _median(self._tally)

    def health(self) -> Health:
        """As it stands, of what the store says serves now; zeros where nothing does.

        Raises:
            DeviceError: the store cannot be read.
        """
        self.follow(self._store.read_state())
        with self._lock:
            tally, trial = self._tally, self._state.trial
            if tally is None:
                return Health(seconds=0, starts=0, requests=0, errors=0, latency_ns=None, before_latency_ns=None)
            latency, before = _median(tally), trial.before_latency_ns if trial else None
            if latency is None or before is None:  # like with like: of the golden vectors both
                latency, before = tally.probed.median() or latency, self._before_ns(tally)
            served = tally.served.count + tally.failed
            return Health(
                seconds=self._clock() - tally.began,
                starts=trial.starts if trial else 0,
                requests=served + tally.probes_failed if served else tally.probes,
                errors=tally.failed + tally.probes_failed,
                latency_ns=latency,
                before_latency_ns=before,
                drift=_largest(tally.drift, _served_drift(self._earlier, tally.records)),
            )

    def _before_ns(self, tally: _Tally) -> int | None:
        """Of the golden vectors on the package before; None where those of the package after it were not run."""
        known = self._before
        if known is None or known[0][0] != tally.package_sha256 or known[1] is None or not tally.probed.count:
            return None
        return int(statistics.median(known[1].latencies_ns))

    def idle(self, serving: Serving) -> bool:
        """Run the golden vectors where a package is on trial and nobody has asked for a while; whether it did.

        The serving thread calls it when no request waits. Not raising: what goes wrong is counted.
        """
        try:
            self.follow(self._store.read_state())
        except DeviceError as error:
            log.warning("%s", error)
            return False
        with self._lock:
            quiet_s = self._clock() - max(self._asked, self._probed)
            due = self._state.trial is not None and quiet_s >= PROBE_S
        if not due:
            return False
        try:
            installed = serving.current()
            variant, _ = serving.answering()
            vectors = vectors_of(installed.directory, installed.manifest, variant)
            self._look_before((installed.slot.package_sha256, variant.name), vectors)
            self._probe(serving, installed, vectors, variant.sqnr_min_db or installed.manifest.golden_sqnr_min_db)
        except (FerrymanError, OSError) as error:
            log.warning("the golden vectors cannot be run: %s", error)
            self._count_probe(failed=True)
        self._probed = self._clock()
        return True

    def _look_before(self, what: tuple[str, str], vectors: list[GoldenVector]) -> None:
        """Have the package before answer the same inputs, once."""
        if self._before and self._before[0] == what:
            return
        previous = self._state.previous
        self._before = (what, run_before(lambda: self._store.verify(previous), vectors, _picked) if previous else None)

    def _probe(self, serving: Serving, installed: Installed, vectors: list[GoldenVector], least_db: float) -> None:
        sha256 = installed.slot.package_sha256
        before = self._before[1] if self._before else None
        for at, vector in enumerate(vectors):
            try:
                replies = [self._ask(serving, vector) for _ in range(CALLS)]
            except CallerError:
                raise
            except FerrymanError as error:
                log.warning("golden vector %d failed: %s", at, error)
                self._count_probe(failed=True)
                continue
            outputs = [one.to_array() for one in replies[-1].outputs]
            moved = distance(before.outputs[at], outputs) if before else None
            with self._mine(sha256) as tally:
                if tally:
                    for reply in replies:
                        tally.probed.add(reply.duration_ns)
                    tally.drift = _largest(tally.drift, moved)
            self._count_probe(failed=not holds(vector, outputs, least_db))

    def _ask(self, serving: Serving, vector: GoldenVector) -> InferReply:
        self._probing = True
        try:
            return serving.infer(InferRequest(inputs=vector.inputs), 6 * HANG_S)
        finally:
            serving.take_served()  # it is no request, and not to be in the statistics of those
            self._probing = False

    def _count_probe(self, *, failed: bool) -> None:
        with self._lock:
            if self._tally:
                self._tally.probes += 1
                self._tally.probes_failed += failed

    @contextmanager
    def _mine(self, package_sha256: str) -> Iterator[_Tally | None]:
        """The tally of a package, if it is the one that is counted."""
        with self._lock:
            mine = self._tally is not None and self._tally.package_sha256 == package_sha256
            yield self._tally if mine else None


def _picked(installed: Installed) -> tuple[Variant, str]:
    return picked(installed.manifest.variants, installed.slot)


def _median(tally: _Tally | None) -> int | None:
    if tally is None or tally.served.count < _SERVED_MIN:
        return None
    return tally.served.median()


def _largest(*found: float | None) -> float | None:
    return max((one for one in found if one is not None), default=None)


def _served_drift(before: Sequence[Drift], after: Sequence[Drift]) -> float | None:
    """The largest Kolmogorov-Smirnov distance of an output; None: too few inferences of one of them."""
    if min(sum(one.inferences for one in records) for records in (before, after)) < _INFERENCES_MIN:
        return None
    try:
        found = distances(before, after)
    except CallerError:
        return None
    return _largest(*(one.kolmogorov_smirnov for one in found if one.role == "output"))
