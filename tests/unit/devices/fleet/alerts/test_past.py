from __future__ import annotations

import numpy as np
import pytest
from datasketches import kll_floats_sketch

from ferryman.devices.fleet.alerts.past import DAY_S, HOUR_S, Rolled, past

NOW_S = 20_000 * DAY_S + 12.5 * HOUR_S


def rolled(package: str, hours_ago: float, values, span_s: int = HOUR_S) -> Rolled:
    sketch = kll_floats_sketch(200)
    sketch.update(np.asarray(values, np.float32))
    start_s = int((NOW_S - hours_ago * HOUR_S) // span_s * span_s)
    return Rolled(package, span_s, start_s, sketch.serialize())


def test_the_past_of_a_package_is_its_own():
    rows = [rolled("a", hours, [10.0] * 50) for hours in range(2, 40)]
    found = past(rows, "a", NOW_S)
    assert found is not None
    assert found.median == pytest.approx(10)
    assert found.values == 38 * 50
    assert found.before is None


def test_this_hour_and_the_one_before_are_not_the_past():
    rows = [rolled("a", hours, [10.0] * 50) for hours in range(2, 40)] + [rolled("a", h, [99.0] * 9000) for h in (0, 1)]
    assert past(rows, "a", NOW_S).median == pytest.approx(10)
    assert past([rolled("a", 0, [99.0])], "a", NOW_S) is None


def test_a_new_package_is_compared_with_the_one_before():
    rows = [rolled("old", 90, [7.0] * 50), rolled("a", 30, [10.0] * 50), rolled("b", 3, [20.0] * 50)]
    found = past(rows, "b", NOW_S)
    assert (found.median, found.before) == (pytest.approx(10), "a")


def test_a_package_that_has_served_for_a_day_is_compared_with_itself():
    rows = [rolled("a", 60, [10.0] * 50), rolled("b", 30, [20.0] * 50)]
    assert past(rows, "b", NOW_S).median == pytest.approx(20)


def test_a_day_that_is_rolled_up_is_not_counted_twice():
    rows = [rolled("a", 36, [10.0] * 50, DAY_S), rolled("a", 36, [10.0] * 50), rolled("a", 3, [30.0] * 20)]
    assert past(rows, "a", NOW_S).values == 70


def test_a_damaged_rollup_is_left_out(caplog):
    rows = [rolled("a", 36, [10.0] * 50), rolled("a", 35, [30.0] * 50)._replace(sketch=b"\x05\x01\x0f")]
    assert past(rows, "a", NOW_S).values == 50
    assert "a rollup is left out" in caplog.text


def test_nothing_is_the_past_of_nothing():
    assert past([], "a", NOW_S) is None
