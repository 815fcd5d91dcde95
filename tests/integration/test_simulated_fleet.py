"""A thousand light devices: real stores, real MQTT, real HTTP; killed and cut off at random. See its support module."""

from __future__ import annotations

import pytest

from tests.support.simulation import GOOD, simulate


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_bad_release_ends_at_the_canary_and_a_good_one_reaches_all():
    found = simulate(1000, processes=8)
    print(found)
    assert found.kills + found.broker_outages >= 5
    # The bad one: halted by the first failure, and only canaries, one of each kind, were ever asked.
    assert found.bad.phase == "halted"
    assert 1 <= found.bad_failed <= found.bad_asked == 3
    # The good one: all have it, or were not heard of in time and serve what they had; no store is damaged.
    assert found.good.phase == "done"
    assert found.bricked == ()
    late = found.good_stands.get("late", 0)
    assert found.good_stands.get("confirmed", 0) + late == 1000
    assert found.serving[GOOD] >= found.good_stands["confirmed"]
    assert set(found.serving) <= {GOOD, "add-1"}
    assert sum(found.serving.values()) == 1000
    # Delta and resume: a fraction of what full downloads would be, kills included.
    assert found.wire_bytes < 0.2 * found.full_bytes
