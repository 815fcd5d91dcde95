from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ferryman.devices.fleet.rollout.query import Target
from ferryman.devices.fleet.rollout.rings import allowed, assign, parse_failures, parse_rings
from ferryman.devices.fleet.rollout.start import Known, cut, make_plan
from ferryman.runtime.contracts.errors import CallerError


def fleet(count, kinds=1):
    return [Target(name=f"d{number}", model=f"kind{number % kinds}") for number in range(count)]


def sizes(rings, count, kinds=1, offline=frozenset()):
    assigned = assign("r", parse_rings(rings), fleet(count, kinds), offline)
    return [list(assigned.values()).count(ring) for ring in range(1 + max(assigned.values()))]


@pytest.mark.parametrize(
    ("rings", "count", "kinds", "expected"),
    [
        ("1,10%,50%,100%", 1000, 1, [1, 99, 400, 500]),
        ("1,10%,50%,100%", 3, 1, [1, 1, 1]),
        ("1,10%,50%,100%", 1, 1, [1]),
        ("1,10%", 10, 1, [1, 9]),
        ("100%", 10, 3, [10]),
        ("1,100%", 10, 3, [3, 7]),
        ("5,100%", 10, 3, [5, 5]),
        ("20,30,100%", 10, 1, [10]),
        ("7%,100%", 100, 1, [7, 93]),
        ("0.5%,100%", 1000, 1, [5, 995]),
    ],
)
def test_totals_become_rings_without_gaps(rings, count, kinds, expected):
    assert sizes(rings, count, kinds) == expected


@given(st.integers(1, 60), st.integers(1, 9), st.sets(st.integers(0, 59)), st.text(max_size=5))
def test_every_device_is_in_a_ring_and_the_first_has_each_kind_that_is_there(count, kinds, off, rollout):
    targets = fleet(count, kinds)
    offline = frozenset(f"d{number}" for number in off)
    assigned = assign(rollout, ("1", "20%", "100%"), targets, offline)
    assert assigned == assign(rollout, ("1", "20%", "100%"), reversed(targets), offline)
    assert set(assigned) == {one.name for one in targets}
    assert list(assigned.values()) == sorted(assigned.values())
    assert set(assigned.values()) == set(range(1 + max(assigned.values())))
    there = {one.model for one in targets if one.name not in offline}
    assert there <= {one.model for one in targets if assigned[one.name] == 0 and one.name not in offline}
    order = [name in offline for name in assigned]
    assert order == sorted(order)


def test_another_release_has_other_canaries():
    first = {
        min(assign(f"r{n}", ("1", "100%"), fleet(100), frozenset()).items(), key=lambda i: i[1])[0] for n in range(9)
    }
    assert len(first) > 4


@pytest.mark.parametrize("text", ["", ",", "0", "1,,2", "x", "50%,10%", "0%", "101%", "-1", "1e3", "5 %", "²"])
def test_what_are_no_rings(text):
    with pytest.raises(CallerError, match="expected growing totals"):
        parse_rings(text)


def test_how_many_may_fail():
    assert [allowed(text, 39) for text in ("0", "2", "5%", "10%", "100%")] == [0, 2, 1, 3, 39]
    for wrong in ("", "-1", "101%", "x", "5%%", "1.5"):
        with pytest.raises(CallerError, match="failures"):
            parse_failures(wrong)


@given(st.integers(0, 100_000), st.integers(1, 10**9))
@example(9_200, 750)
@example(42_800, 750)
@example(7_000, 100)
def test_shares_are_counted_exactly(thousandths, devices):
    """By whole numbers: at most the share may fail, and a ring is at least its share."""
    share = f"{thousandths // 1000}.{thousandths % 1000:03}%"
    assert parse_failures(share) == share
    assert allowed(share, devices) == thousandths * devices // 100_000
    assert allowed(share.replace("0%", "%"), devices) == allowed(share, devices)


@given(st.integers(1, 100_000), st.integers(1, 400))
@example(9_200, 375)
def test_a_ring_of_a_share_is_that_share_rounded_up(thousandths, devices):
    share = f"{thousandths // 1000}.{thousandths % 1000:03}%"
    first = list(assign("r", parse_rings(share), fleet(devices), frozenset()).values()).count(0)
    assert first == -(-thousandths * devices // 100_000)


def test_a_plan_that_was_looked_at_is_the_plan_that_is_run():
    known = [Known(target=one, online=True) for one in fleet(50)]
    looked, run = (cut(make_plan("net/2", "2" * 64, "all"), known) for _ in range(2))
    assert looked == run
    assert cut(make_plan("net/3", "3" * 64, "all"), known) != run
