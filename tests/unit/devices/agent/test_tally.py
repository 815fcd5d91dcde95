from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from ferryman.devices.agent.tally import KEPT_MAX, ServedTally, order_statistics
from ferryman.runtime.contracts.telemetry import LATENCIES_MAX


@given(st.lists(st.integers(0, 10**12), max_size=400))
def test_order_statistics_are_measured_values_in_order_from_the_least_to_the_largest(values):
    found = order_statistics(values)
    assert found == sorted(found)
    assert len(found) == min(len(values), LATENCIES_MAX)
    assert set(found) <= set(values)
    if values:
        assert (found[0], found[-1]) == (min(values), max(values))
    if len(values) <= LATENCIES_MAX:
        assert found == sorted(values)


def test_each_package_is_counted_by_itself_and_once():
    tally = ServedTally()
    for latency in (3_000_000, 1_000_000, 2_000_000):
        tally.answered("old", latency)
    tally.failed("new")
    old, new = tally.take()
    assert old == ("old", 3, 0, 2.0, (1.0, 2.0, 3.0))
    assert new == ("new", 0, 1, None, ())
    assert tally.take() == []


def test_what_is_kept_is_bounded_and_the_count_is_not():
    tally = ServedTally()
    threads = [threading.Thread(target=lambda: [tally.answered("p", n * 10**6) for n in range(5000)]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tally._counts["p"].answered.kept) == KEPT_MAX
    (served,) = tally.take()
    assert served.inferences == 10_000
    assert len(served.latencies_ms) == LATENCIES_MAX
    assert 2000 < served.median_ms < 3000  # 2500, with a standard error of some 45
