"""What a trial is judged by: counted, bounded, and of the golden vectors where nobody asks."""

from __future__ import annotations

import threading

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from ferryman.devices.agent import health as health_module
from ferryman.devices.agent.health import PROBE_S, HealthWatch
from ferryman.devices.agent.probe import distance
from ferryman.devices.agent.serving import Serving
from ferryman.devices.agent.tally import KEPT_MAX
from ferryman.profiler.drift import sketch_of
from ferryman.runtime.contracts.drift import Drift
from ferryman.runtime.contracts.errors import CallerError, DeviceError, RuntimeCrash, RuntimeFault
from ferryman.runtime.contracts.messages import InferRequest
from ferryman.runtime.contracts.slot import HealthRules, Slot, SlotState, Trial
from ferryman.runtime.contracts.tensor import to_tensors
from ferryman.runtime.install import install
from ferryman.runtime.slots import SlotStore
from ferryman.runtime.trial import judge
from tests.support.packages import write_tiny_package

OLD = Slot(name="a", package_sha256="old", package_name="old", manifest_sha256="", installed_at_ns=0)
NEW = replace(OLD, name="b", package_sha256="new", package_name="new")
TRIAL = Trial(desired_version=1, rollout="r", rules=HealthRules(), began_at_ns=1, starts=2, before_latency_ns=100)
X = np.arange(4, dtype=np.float32).reshape(1, 4)


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


class Followed(HealthWatch):
    """Of a store that no package is in: what `serve` says counts."""

    def serve(self, state):
        with self._store.lock():
            self._store.write_state(state)
        self.follow(state)


@pytest.fixture
def watch(tmp_path, clock):
    return Followed(SlotStore(tmp_path / "root"), clock)


def test_nothing_serves_and_nothing_is_healthy(watch):
    assert watch.health().seconds == 0
    watch.serve(SlotState(active=OLD))
    watch.serve(SlotState())
    assert watch.health().seconds == 0


def test_a_new_package_begins_at_zero_and_a_new_trial_of_it_too(watch, clock):
    watch.serve(SlotState(active=OLD))
    watch.answered("old", 50)
    clock.now += 7
    assert (watch.health().seconds, watch.health().requests) == (7, 1)
    state = SlotState(active=NEW, previous=OLD, trial=TRIAL)
    watch.serve(state)
    clock.now += 2
    watch.answered("old", 50)  # it was under way
    watch.failed("old")
    watch.serve(state)
    found = watch.health()
    assert (found.seconds, found.requests, found.errors, found.starts) == (2, 0, 0, 2)
    watch.failed("new")
    watch.serve(replace(state, trial=replace(TRIAL, starts=3)))
    assert (watch.health().errors, watch.health().starts) == (1, 3)
    watch.serve(replace(state, trial=replace(TRIAL, began_at_ns=2)))
    assert watch.health().errors == 0
    watch.serve(replace(state, trial=None))
    clock.now += 1
    assert (watch.health().seconds, watch.health().starts) == (1, 0)


def test_a_package_that_was_just_activated_is_not_taken_for_the_one_before(watch, clock):
    watch.serve(SlotState(active=OLD))
    clock.now += 1000
    with watch._store.lock():
        watch._store.write_state(SlotState(active=NEW, previous=OLD, trial=TRIAL))  # and nobody told the watch
    assert watch.health().seconds == 0


def test_the_median_of_served_calls_stands_beside_that_of_the_package_before(watch):
    watch.serve(SlotState(active=NEW, previous=OLD, trial=TRIAL))
    for latency in (10, 20, 30, 1000):
        watch.answered("new", latency)
    assert (watch.latency_ns(), watch.health().latency_ns) == (None, None)  # too few
    watch.answered("new", 40)
    assert watch.latency_ns() == 30
    found = watch.health()
    assert (found.latency_ns, found.before_latency_ns, found.requests) == (30, 100, 5)


def test_what_is_kept_of_many_calls_is_bounded_and_even(watch):
    watch.serve(SlotState(active=OLD))
    threads = [threading.Thread(target=lambda: [watch.answered("old", n) for n in range(10_000)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(watch._tally.served.kept) == KEPT_MAX
    assert watch.health().requests == 30_000
    assert 4000 < watch.latency_ns() < 6000  # 5000, with a standard error of some 150


class Refusing:
    """A session whose next call ends in an error."""

    def __init__(self, error):
        self._error = error
        self.entry, self.timeout_s = None, 0.0

    def run(self, _inputs):
        raise self._error

    def close(self):
        pass


@pytest.fixture
def served(tmp_path, clock):
    """add-2 on trial after add-1, a watch, and what serves."""
    store = SlotStore(tmp_path / "root")
    for added in (1.0, 2.0):
        install(write_tiny_package(tmp_path / f"{added:g}.ferry", added=added), store.root, golden=lambda *_: ())
    store.write_state(replace(store.read_state(), trial=replace(TRIAL, before_latency_ns=None)))
    watch = HealthWatch(store, clock)
    watch.follow(store.read_state())
    serving = Serving(store, watch)
    yield store, watch, serving
    serving.close()


def ask(serving, timeout_s=20.0, **names):
    return serving.infer(InferRequest(inputs=to_tensors([X]), **names), timeout_s)


@pytest.mark.parametrize(
    ("error", "timeout_s", "errors"),
    [
        (RuntimeFault("it refuses"), 20.0, 1),
        (RuntimeCrash("it died"), 20.0, 1),
        (ZeroDivisionError(), 20.0, 1),
        (RuntimeFault("not within 20 s"), 1e-9, 0),  # whoever asks for a nanosecond says nothing of the package
        (CallerError("wrong inputs"), 20.0, 0),
    ],
)
def test_only_what_is_the_packages_fault_is_an_error(served, error, timeout_s, errors):
    _, watch, serving = served
    variant, interpreter = serving.answering()
    serving._sessions[variant.payload, interpreter] = Refusing(error)
    with pytest.raises(type(error)):
        ask(serving, timeout_s)
    assert (watch.health().requests, watch.health().errors) == (errors, errors)
    with pytest.raises(CallerError):
        ask(serving, variant="none")
    assert watch.health().errors == errors


def test_files_that_rot_during_a_trial_are_errors_and_the_package_before_is_asked_for(served, clock):
    store, watch, serving = served
    ask(serving)
    assert (watch.health().requests, watch.health().errors) == (1, 0)
    serving.release()
    (store.directory("b") / "artifacts" / "model.tflite").write_bytes(b"rot")
    for _ in range(5):
        with pytest.raises(DeviceError, match="push the package again"):
            ask(serving)
    assert judge(HealthRules(), watch.health()) == "5 of 6 requests failed, more than 5.0%"


def test_where_nobody_asks_the_golden_vectors_tell_of_latency_and_of_drift(served, clock):
    store, watch, serving = served
    assert not watch.idle(serving)
    clock.now += PROBE_S
    asked_s = watch.idle_s()
    assert watch.idle(serving)
    assert not watch.idle(serving)
    assert watch.idle_s() == asked_s  # nobody asked
    found = watch.health()
    assert (found.requests, found.errors) == (1, 0)
    assert found.latency_ns > 0
    assert found.before_latency_ns > 0
    assert found.drift == pytest.approx(np.linalg.norm(np.ones(4)) / np.linalg.norm(X + 1))
    assert "away from those of the package before" in judge(HealthRules(window_s=1, drift_max=0.3), found)
    assert serving.take_served() is None
    for _ in range(5):
        ask(serving)
    found = watch.health()
    assert found.requests == 5
    assert found.before_latency_ns is not None  # nothing is known of what the package before served: golden vectors
    assert not watch.idle(serving)
    store.write_state(replace(store.read_state(), trial=None))
    watch.follow(store.read_state())
    clock.now += 10 * PROBE_S
    assert not watch.idle(serving)


def test_an_answer_that_the_golden_vector_does_not_hold_for_is_an_error(served, clock, monkeypatch):
    _, watch, serving = served
    ask(serving)
    (session,) = serving._sessions.values()
    run = session.run
    monkeypatch.setattr(session, "run", lambda inputs: [one + 1 for one in run(inputs)])
    clock.now += PROBE_S
    assert watch.idle(serving)
    found = watch.health()
    assert (found.errors, found.requests) == (1, 2)


def test_a_package_that_cannot_run_its_golden_vectors_fails_and_the_agent_goes_on(served, clock):
    store, watch, serving = served
    serving.current()
    (store.directory("b") / "golden" / "0.msgpack").unlink()
    clock.now += PROBE_S
    assert watch.idle(serving)
    assert watch.health().errors == 1


@pytest.mark.parametrize("damage", ["rot", "gone"])
def test_a_package_before_that_does_not_run_any_more_is_no_fault_of_the_new_one(served, clock, damage):
    store, watch, serving = served
    artifact = store.directory("a") / "artifacts" / "model.tflite"
    if damage == "rot":
        artifact.write_bytes(b"rot")
    else:
        store.write_state(replace(store.read_state(), previous=None))
        watch.follow(store.read_state())
    clock.now += PROBE_S
    assert watch.idle(serving)
    found = watch.health()
    assert (found.errors, found.drift, found.before_latency_ns) == (0, None, None)
    assert found.latency_ns > 0


def drift_of(sha256, values, inferences=200):
    return Drift(
        package_name="net", package_sha256=sha256, variant="v", interpreter="i", from_ns=1, to_ns=2,
        inferences=inferences, library="datasketches",
        tensors=(sketch_of([np.asarray(values, np.float32)], "y", "output"),),
    )  # fmt: skip


def test_what_is_served_may_drift_from_what_the_package_before_served(watch):
    pytest.importorskip("datasketches")
    watch.serve(SlotState(active=OLD))
    values = np.random.default_rng(0).normal(size=2000)
    watch.saw_drift([drift_of("old", values)])
    watch.serve(SlotState(active=NEW, previous=OLD, trial=TRIAL))
    assert watch.health().drift is None
    watch.saw_drift([drift_of("new", values + 1, inferences=60)])
    assert watch.health().drift is None  # too few
    watch.saw_drift([drift_of("new", values + 1, inferences=60)])
    assert 0.3 < watch.health().drift < 0.45  # 0.383 in truth, less what sketches may err
    watch.saw_drift([drift_of("old", values)])  # a stretch that ended late
    assert len(watch._earlier) == 2
    for _ in range(100):
        watch.saw_drift([drift_of("new", values)])
    assert len(watch._tally.records) == health_module._RECORDS_MAX


def test_statistics_are_ended_once_when_a_window_that_asks_for_drift_is_about_over(watch, clock):
    asks = replace(TRIAL, rules=HealthRules(window_s=60, drift_max=0.5))
    for trial, expected in ((TRIAL, [False] * 4), (asks, [False, True, False, False])):
        watch.serve(SlotState())
        watch.serve(SlotState(active=NEW, previous=OLD, trial=trial))
        found = []
        for seconds in (59, 0.6, 1, 100):
            clock.now += seconds
            found.append(watch.wants_drift())
        assert found == expected
    watch.serve(SlotState(active=NEW))
    assert not watch.wants_drift()


def test_how_far_outputs_moved():
    one = [np.array([3.0, 4.0], np.float32)]
    assert distance(one, one) == 0.0
    assert distance(one, [np.array([3.0, 4.5], np.float32)]) == pytest.approx(0.1)
    assert distance(one, [np.array([300.0, 4.0], np.float32)]) == 1.0
    assert distance([np.zeros(2)], [np.zeros(2)]) == 0.0
    assert distance([np.zeros(2)], [np.ones(2)]) == 1.0
    assert distance([np.array([np.nan, 1])], [np.array([np.nan, 1])]) == 0.0
    assert distance(one, [np.array([np.nan, 4.0], np.float32)]) == 1.0
    assert distance([np.array([1, 2, 3, 4])], [np.array([1, 2, 3, 5])]) == 0.25
    assert distance([np.array([True, False])], [np.array([True, True])]) == 0.5
    assert distance([np.zeros(0)], [np.zeros(0)]) == 0.0
    assert distance(one, [np.array([3.0, 4.0, 5.0])]) is None
    assert distance(one, [np.array([3, 4])]) is None
    assert distance([], []) is None


def test_health_crosses_the_wire(watch):
    watch.serve(SlotState(active=OLD))
    found = watch.health()
    assert msgspec.json.decode(msgspec.json.encode(found), type=type(found)) == found
