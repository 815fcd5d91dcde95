"""A smaller variant serves while the device is hot or its battery low, and the picked one comes back by itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ferryman.devices.agent.ready import Readings
from ferryman.devices.agent.serving import Serving
from ferryman.devices.agent.stepdown import Rung, StepDown, StepLimits, ladder
from ferryman.runtime.contracts.messages import InferRequest
from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.contracts.slot import Measured
from ferryman.runtime.contracts.tensor import to_tensors
from ferryman.runtime.install import install
from ferryman.runtime.slots import SlotStore
from tests.support.packages import write_tiny_package, write_varied_package
from tests.unit.devices.agent.test_serving import variant

NONE = Unavailable(reason="no sensor")
FINE = Readings(power="mains", battery=NONE, hottest_c=40.0, throttled=(), idle_s=0.0, minute=0)
HOT = FINE._replace(hottest_c=85.0)
WARM = FINE._replace(hottest_c=75.0)
LOW = FINE._replace(power="battery", battery=0.1)
X = np.arange(4, dtype=np.float32).reshape(1, 4)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def levels(readings, deepest=2, seconds=10.0):
    clock = Clock()
    steps = StepDown(StepLimits(), clock)
    found = []
    for one in readings:
        steps.update(one, deepest)
        found.append(steps.level)
        clock.now += seconds
    return found


def test_heat_leads_down_step_by_step_and_calm_back_up():
    assert levels([FINE] * 5) == [0] * 5
    assert levels([HOT] * 8) == [1, 1, 1, 2, 2, 2, 2, 2]
    assert levels([HOT, *[FINE] * 14]) == [1] * 13 + [0] * 2  # calm for 120 s
    assert levels([HOT] * 4 + [FINE] * 26) == [1, 1, 1, *[2] * 13, *[1] * 12, 0, 0]


def test_between_hot_and_cool_nothing_moves():
    assert levels([WARM] * 30) == [0] * 30
    assert levels([HOT, *[WARM] * 60]) == [1] * 61
    assert levels([HOT, *([FINE] * 11 + [WARM]) * 5]) == [1] * 61


def test_one_that_has_no_smaller_variant_stays():
    assert levels([HOT] * 10, deepest=0) == [0] * 10


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (HOT, "it is hot (85 degrees)"),
        (FINE._replace(throttled=("thermal",), hottest_c=NONE), "the clock is held down (thermal)"),
        (LOW, "the battery is low (10%)"),
        (LOW._replace(power=NONE), "the battery is low (10%)"),
        (LOW._replace(power="mains"), ""),
        (LOW._replace(battery=NONE), ""),
        (FINE._replace(hottest_c=NONE, throttled=NONE, power=NONE), ""),
    ],
)
def test_the_reason_is_told(now, reason):
    steps = StepDown()
    assert steps.update(now, 1) == bool(reason)
    assert (steps.level, steps.reason) == (int(bool(reason)), reason)


def test_a_battery_must_be_charged_a_little_before_the_step_back():
    some = LOW._replace(battery=0.25)
    assert levels([LOW, *[some] * 30]) == [1] * 31
    assert levels([LOW, *[LOW._replace(battery=0.3)] * 14])[-1] == 0
    assert levels([LOW, *[LOW._replace(power="mains")] * 14])[-1] == 0


READINGS = st.builds(
    Readings,
    power=st.sampled_from(["mains", "battery", NONE]),
    battery=st.floats(0, 1) | st.just(NONE),
    hottest_c=st.floats(-20, 120) | st.just(NONE),
    throttled=st.sampled_from([(), ("thermal",), NONE]),
    idle_s=st.just(0.0),
    minute=st.just(0),
)


@given(st.lists(st.tuples(READINGS, st.floats(0.1, 500), st.integers(0, 3)), max_size=40))
def test_any_readings_move_one_step_at_a_time_and_within_what_there_is(readings):
    clock = Clock()
    steps = StepDown(clock=clock)
    for now, passed, deepest in readings:
        clock.now += passed
        before = steps.level
        changed = steps.update(now, deepest)
        assert changed == (steps.level != before)
        assert 0 <= steps.level <= deepest
        assert abs(steps.level - min(before, deepest)) <= 1
        assert bool(steps.reason) == bool(steps.level)


def test_smaller_variants_are_those_that_were_measured_to_be_faster():
    a, b, c = (variant(name, "ai-edge-litert") for name in "abc")
    times = {"a": 1000, "b": 400, "c": 950}

    def measured(**latencies):
        return [
            Measured(variant=n, interpreter="ai-edge-litert", latency_ns=t, memory_bytes=None, sqnr_db=1)
            for n, t in latencies.items()
        ]

    top = Rung(a, "ai-edge-litert")
    assert [r.variant.name for r in ladder((a, b, c), measured(**times), top)] == ["b"]  # c is hardly faster
    assert [r.variant.name for r in ladder((a, b, c), measured(a=1000, b=400, c=600), top)] == ["c", "b"]
    assert ladder((a, b, c), measured(b=1, c=1), top) == ()  # who knows
    assert ladder((a, variant("b", "ai-edge-litert", isa=("avx9000",))), measured(**times), top) == ()
    large, half, other = replace(a, share=1.0), replace(b, share=0.5), replace(c, payload="another", share=0.1)
    nested = ladder((large, half, other), measured(c=1), Rung(large, "ai-edge-litert"))
    assert [r.variant.name for r in nested] == ["b"]  # of the same file alone
    assert ladder((large, half), [], Rung(half, "ai-edge-litert")) == ()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def serving(tmp_path, clock):
    install(write_varied_package(tmp_path / "v.ferry", added=4.0), tmp_path / "root", golden=lambda *_: ())
    serving = Serving(SlotStore(tmp_path / "root"), steps=StepDown(StepLimits(calm_s=10.0), clock))
    yield serving
    serving.close()


def ask(serving, **names):
    reply = serving.infer(InferRequest(inputs=to_tensors([X]), **names), 20.0)
    return reply.variant, float(reply.outputs[0].to_array()[0, 0])


def test_a_hot_device_serves_the_smaller_variant_and_comes_back(serving, clock, caplog):
    assert not serving.adapt(HOT)  # nothing is open, so nothing is known of what there is
    assert ask(serving) == ("large", 4.0)
    assert serving.answers is None
    assert serving.adapt(HOT)
    assert "answered by small on ai-edge-litert, a smaller one while it is hot" in caplog.text
    assert serving.answers == "small on ai-edge-litert, a smaller one while it is hot (85 degrees)"
    assert ask(serving) == ("small", 1.0)
    assert ask(serving, variant="large") == ("large", 4.0)
    assert not serving.adapt(FINE)
    clock.now += 10
    assert serving.adapt(FINE)
    assert ask(serving) == ("large", 4.0)
    assert serving.answers is None


def test_another_package_with_one_variant_serves_that(serving, clock, tmp_path):
    ask(serving)
    serving.adapt(HOT)
    install(write_tiny_package(tmp_path / "1.ferry"), tmp_path / "root", golden=lambda *_: ())
    assert ask(serving) == ("fp32-tflite", 1.0)
    assert serving.adapt(HOT)  # back to what there is
    assert ask(serving) == ("fp32-tflite", 1.0)
    assert serving.answers is None


def test_without_the_policy_nothing_steps_down(tmp_path):
    install(write_varied_package(tmp_path / "v.ferry", added=4.0), tmp_path / "root", golden=lambda *_: ())
    serving = Serving(SlotStore(tmp_path / "root"))
    try:
        ask(serving)
        assert not serving.adapt(HOT)
        assert ask(serving) == ("large", 4.0)
    finally:
        serving.close()
