from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ferryman.devices.fleet.rollout.fit import of_class, variants_for
from ferryman.devices.fleet.rollout.health import complaint, ring_health
from ferryman.devices.fleet.rollout.records import Thresholds
from ferryman.runtime.picking import choose
from tests.support.rollouts import health, measured

NESTED = (measured("25", 5, 0.25, 900), measured("50", 15, 0.5, 900), measured("100", 40, 1.0, 900))


def test_a_class_gets_what_each_of_its_devices_can_keep_to():
    slow = tuple(replace(one, latency_ns=one.latency_ns * 2) for one in NESTED)
    assert variants_for([NESTED], "largest-20ms") == ("50",)
    assert variants_for([NESTED, slow], "largest-20ms") == ("25",)
    assert variants_for([NESTED, slow], "largest-5ms") == ()
    assert variants_for([], "largest-20ms") == ()
    assert variants_for([NESTED], "first") == ()
    assert variants_for([NESTED], "largest") == ("100",)


def test_what_one_device_did_not_measure_another_may_have():
    assert variants_for([NESTED[:1], NESTED[1:]], "largest-20ms") == ("50",)
    unknown = (replace(NESTED[1], latency_ns=None),)
    assert variants_for([unknown], "largest-20ms") == ()
    assert variants_for([unknown, NESTED], "largest-20ms") == ("50",)


@given(st.lists(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 50)), max_size=4), max_size=5))
def test_the_choice_of_a_class_is_within_the_budget_on_all_that_measured_it(devices):
    found = [tuple(measured(name, latency) for name, latency in one) for one in devices]
    for chosen in variants_for(found, "fastest-20ms"):
        assert all(one.latency_ns <= 20_000_000 for device in found for one in device if one.variant == chosen)
    merged = of_class(found)
    assert len({(one.variant, one.interpreter) for one in merged}) == len(merged)
    best = choose(merged, "fastest-20ms")
    assert variants_for(found, "fastest-20ms") == ((best.variant,) if best else ())


def test_medians_wait_for_half_a_ring_and_failures_for_nobody():
    slow = [health(4.0, 2.0)] * 2
    few = ring_health(["confirmed", "confirmed", *["trial"] * 3], slow)
    assert complaint(few, Thresholds(), complete=False) is None
    assert "2.00 times" in complaint(few, Thresholds(), complete=True)
    half = ring_health(["confirmed", "confirmed", *["trial"] * 2], slow)
    assert "over 2 devices" in complaint(half, Thresholds(), complete=False)
    failed = ring_health(["lost", *["asked"] * 9], [])
    assert "1 of 10 devices failed, at most 0 may" in complaint(failed, Thresholds(), complete=False)
    apart = ring_health(["late", "superseded", "kept", "waiting"], [])
    assert complaint(apart, Thresholds(failures_max="0"), complete=True) is None
