"""The account of what updates cost: over kills, restarts and clocks that jump."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferryman.devices.agent.update.budget import DAY_S, DataBudget, DayBudgetError, Now, Usage, elapsed_s, passed
from ferryman.runtime.contracts.errors import BudgetError, CallerError, DeviceError
from tests.support.damage import CHANGES, changed

SET = 1_800_000_000.0


class Clocks:
    def __init__(self, boot="1", uptime_s=100.0, wall_s=SET):
        self.now = Now(boot, uptime_s, wall_s)

    def __call__(self):
        return self.now

    def pass_s(self, seconds):
        self.now = Now(self.now.boot, self.now.uptime_s + seconds, self.now.wall_s + seconds)


def budget(tmp_path, clocks, day=10_000_000):
    return DataBudget(tmp_path / "update" / "usage.json", day_max_bytes=day, clocks=clocks)


def test_what_was_spent_counts_in_the_next_process(tmp_path):
    clocks = Clocks()
    first = budget(tmp_path, clocks)
    first.begin("u", 5_000_000)
    first.spend(1_000_000)
    first.settle()
    second = budget(tmp_path, clocks)
    second.begin("u", 5_000_000)
    assert second.update_bytes == second.total_bytes == 1_000_000
    assert second.left() == 4_000_000


def test_a_kill_hides_no_byte_and_costs_little(tmp_path):
    clocks = Clocks()
    first = budget(tmp_path, clocks)
    first.begin("u", 5_000_000)
    for _ in range(100):
        first.spend(7_777)
        left = budget(tmp_path, clocks).left()  # what a process started now would find
        assert 10_000_000 - 777_700 - 10_000_000 // 64 <= left <= first.left() + 5_000_000
    after = budget(tmp_path, clocks)
    assert 777_700 <= after.total_bytes <= 777_700 + 10_000_000 // 64


def test_a_closed_account_is_somebody_elses(tmp_path):
    """Who held it may still have a thread that has not heard."""
    clocks = Clocks()
    first = budget(tmp_path, clocks)
    first.begin("u")
    first.spend(1000)
    first.close()
    assert budget(tmp_path, clocks).total_bytes == first.total_bytes == 1000, "what was set aside is given back"
    second = budget(tmp_path, clocks)
    second.spend(5_000_000)
    second.close()
    account = (tmp_path / "update" / "usage.json").read_bytes()
    for late in (lambda: first.spend(1), lambda: first.spend(10_000_000)):
        with pytest.raises(CallerError, match="closed"):
            late()
    first.settle()
    first.close()
    assert (tmp_path / "update" / "usage.json").read_bytes() == account


def test_a_budget_is_never_passed_on_the_disk(tmp_path):
    clocks = Clocks()
    one = budget(tmp_path, clocks, day=100_000)
    while left := one.left():
        one.spend(min(left, 30_000))
    one.settle()
    assert budget(tmp_path, clocks, day=100_000).total_bytes == 100_000
    with pytest.raises(BudgetError, match="100000 are spent"):
        one.check(1, "it")


def test_a_day_ends_after_24_hours_and_not_before(tmp_path):
    clocks = Clocks()
    one = budget(tmp_path, clocks, day=1000)
    one.spend(800)
    clocks.pass_s(DAY_S - 1)
    with pytest.raises(DayBudgetError, match=r"300 bytes .* 1000 a day, of which 800 are spent; .* in 0.0 h"):
        one.check(300, "it")
    clocks.pass_s(2)
    one.check(300, "it")
    with pytest.raises(BudgetError, match="allow a day more") as caught:
        one.check(1001, "it")
    assert not isinstance(caught.value, DayBudgetError)


@pytest.mark.parametrize(
    ("then", "now", "passed_s"),
    [
        pytest.param(Now("1", 10, SET), Now("1", 70, SET - 9e8), 60, id="set back"),
        pytest.param(Now("1", 10, 60.0), Now("1", 70, SET), 60, id="set for the first time"),
        pytest.param(Now("1", 10, SET), Now("2", 5, SET + 500), 500, id="restart, the clock is set"),
        pytest.param(Now("1", 10, SET), Now("2", 5, 30.0), 5, id="restart, the clock begins at 1970"),
        pytest.param(Now("1", 10, 60.0), Now("2", 5, SET), 5, id="restart, the clock was not set before"),
        pytest.param(Now("1", 10, SET), Now("2", 5, SET - 900), 5, id="restart, set back"),
    ],
)
def test_clocks_that_jump_end_no_day(then, now, passed_s):
    usage = Usage(boot=then.boot, uptime_s=then.uptime_s, wall_s=then.wall_s, day_bytes=7)
    assert elapsed_s(usage, now) == passed_s
    assert passed(usage, now).day_bytes == 7


def test_updates_are_counted_apart(tmp_path):
    one = budget(tmp_path, Clocks(), day=None)
    for name in "abcdefghijk":
        one.begin(name, 1000)
        one.spend(100)
    one.begin("k", 1000)
    assert one.left() == 900
    one.begin("a", 1000)  # long ago
    assert one.left() == 1000
    with pytest.raises(
        BudgetError, match="1001 bytes on the wire, and an update may cost 1000, of which this one spent 0"
    ):
        one.check(1001, "it")


@settings(deadline=None, max_examples=40)
@given(CHANGES)
def test_a_damaged_account_locks_nobody_out_and_gives_nothing_away(tmp_path_factory, changes):
    tmp_path = tmp_path_factory.mktemp("damaged")
    clocks = Clocks()
    one = budget(tmp_path, clocks, day=1000)
    one.spend(400)
    one.settle()
    path = tmp_path / "update" / "usage.json"
    path.write_bytes(changed(path.read_bytes(), changes))
    found = budget(tmp_path, clocks, day=1000)
    if found.note:
        assert found.left() == 0
        clocks.pass_s(DAY_S + 1)
        found.check(1000, "it")


@settings(deadline=None, max_examples=40)
@given(st.binary(max_size=100))
def test_any_bytes_are_an_account_or_a_spent_day(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "usage.json"
    path.write_bytes(data)
    assert DataBudget(path, day_max_bytes=10, clocks=Clocks()).left() == 0


def test_without_room_for_the_account_nothing_may_be_spent(tmp_path):
    one = DataBudget(tmp_path / "no-folder" / "usage.json", clocks=Clocks())
    (tmp_path / "no-folder").write_bytes(b"")
    with pytest.raises(DeviceError, match="cannot write"):
        one.spend(1)
