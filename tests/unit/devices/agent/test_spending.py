from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.devices.agent.clock import Reading
from ferryman.devices.agent.outbox import Outbox
from ferryman.devices.agent.spending import NOTE, Account, Spending, TelemetryConfig, passed, read_account
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.telemetry import Priority
from tests.unit.devices.agent.test_upkeep import Hands

S = 10**9
HOUR = 3600 * S
DAY = 24 * HOUR
MIDNIGHT = 20_800 * DAY
MAX = 100_000


def spent(account: Account, count: int) -> Account:
    return Account(
        **{name: getattr(account, name) for name in account.__struct_fields__}
        | {"spent_bytes": account.spent_bytes + count}
    )


def test_a_budget_begins_anew_with_the_utc_day():
    account = spent(passed(Account(), Reading(MIDNIGHT - HOUR, HOUR, sure=True), "b", MAX), 70)
    assert passed(account, Reading(MIDNIGHT - 1, 2 * HOUR - 1, sure=True), "b", MAX).spent_bytes == 70
    assert passed(account, Reading(MIDNIGHT, 2 * HOUR, sure=True), "b", MAX).spent_bytes == 0


def test_a_restart_of_the_device_begins_no_budget():
    account = spent(passed(Account(), Reading(MIDNIGHT, HOUR, sure=True), "b", MAX), 70)
    later = passed(account, Reading(MIDNIGHT + HOUR, S, sure=True), "another", MAX)
    assert later.spent_bytes == 70
    assert passed(later, Reading(MIDNIGHT + DAY, 23 * HOUR, sure=True), "another", MAX).spent_bytes == 0


def test_without_a_sure_clock_a_day_is_24_hours_of_running_over_restarts():
    account = spent(passed(Account(), Reading(0, HOUR, sure=False), "b", MAX), 70)
    account = passed(account, Reading(0, 13 * HOUR, sure=False), "b", MAX)
    account = passed(account, Reading(0, 11 * HOUR, sure=False), "another", MAX)
    assert account.spent_bytes == 70
    assert passed(account, Reading(0, 12 * HOUR, sure=False), "another", MAX).spent_bytes == 0


def test_a_clock_that_is_set_back_takes_nothing_away():
    account = spent(passed(Account(), Reading(MIDNIGHT + 9 * DAY, HOUR, sure=True), "b", MAX), 70)
    account = passed(account, Reading(MIDNIGHT + HOUR, 2 * HOUR, sure=True), "b", MAX)
    assert account.spent_bytes == 70
    assert passed(account, Reading(MIDNIGHT + DAY, 25 * HOUR, sure=True), "b", MAX).spent_bytes == 0


def test_what_was_spent_over_a_budget_comes_off_the_next():
    account = spent(passed(Account(), Reading(MIDNIGHT, HOUR, sure=True), "b", MAX), MAX + 7)
    assert passed(account, Reading(MIDNIGHT + DAY, 25 * HOUR, sure=True), "b", MAX).spent_bytes == 7


@given(
    st.lists(
        st.tuples(
            st.integers(0, 30 * 3600).map(lambda seconds: seconds * S),
            st.sampled_from([0, 0, 0, DAY, -DAY, 400 * DAY, -400 * DAY, 1]),
            st.booleans(),
        ),
        max_size=60,
    )
)
def test_no_jumps_of_the_clock_win_more_than_a_budget_each_20_hours(steps):
    wall, uptime = MIDNIGHT, 0
    account = passed(Account(), Reading(wall, uptime, sure=True), "b", MAX)
    renewals = []
    for waited, jump, sure in steps:
        wall, uptime = wall + waited + jump, uptime + waited
        account = passed(spent(account, 5), Reading(max(0, wall), uptime, sure=sure), "b", MAX)
        if account.spent_bytes == 0:
            renewals.append(uptime)
    assert all(later - earlier >= 20 * HOUR for earlier, later in itertools.pairwise(renewals))


@given(st.lists(st.integers(0, 30 * 3600).map(lambda seconds: seconds * S), min_size=1, max_size=60))
def test_a_sure_clock_that_runs_wins_a_budget_for_each_day(steps):
    wall, uptime = MIDNIGHT + 5 * HOUR, HOUR
    account = passed(Account(), Reading(wall, uptime, sure=True), "b", MAX)
    for waited in steps:
        day = wall // DAY
        wall, uptime = wall + waited, uptime + waited
        account = passed(spent(account, 5), Reading(wall, uptime, sure=True), "b", MAX)
        # One that ends a long sleep late in the day may begin the next within 20 hours: that one is late.
        assert account.spent_bytes == 0 or wall // DAY == day or account.elapsed_ns < 20 * HOUR


def spending(box: Outbox, **config) -> Spending:
    made = Spending(box, TelemetryConfig(**config))
    made.roll()
    return made


def test_what_is_spent_is_counted_before_it_is_and_over_a_restart(tmp_path):
    box = Outbox(tmp_path / "o", clock=Hands())
    spending(box, day_max_bytes=MAX).spend(40_000, 0.0)
    assert read_account(box).spent_bytes == 40_000
    again = spending(box, day_max_bytes=MAX)
    common, vital = again.shares()
    assert (common.left_bytes, vital.left_bytes) == (50_000, 60_000)
    assert (common.levels, vital.levels) == (tuple(Priority), (Priority.VITAL,))


def test_without_a_limit_it_is_counted_now_and_then(tmp_path):
    box = Outbox(tmp_path / "o", clock=Hands())
    account = spending(box, mode="metered")
    account.spend(40_000, 0.0)
    (share,) = account.shares()
    assert share.left_bytes is None
    account.roll()
    assert read_account(box) == read_account(box)
    assert (read_account(box).spent_bytes, read_account(box).mode) == (40_000, "metered")


def test_a_budget_that_begins_anew_is_told_once(tmp_path):
    hands = Hands()
    box = Outbox(tmp_path / "o", clock=hands)
    account = spending(box, day_max_bytes=MAX)
    account.spend(90_000, 0.0)
    hands.pass_(5 * HOUR)
    assert not account.roll()
    hands.pass_(18 * HOUR)
    assert (account.roll(), account.roll()) == (True, False)
    assert account.shares()[0].left_bytes == 90_000


def test_a_rate_spaces_messages_out_by_their_size(tmp_path):
    account = spending(Outbox(tmp_path / "o"), rate_bytes_s=1000)
    assert account.message_max_bytes(1 << 18) == 1000
    assert account.wait_s(5.0) == 0
    account.spend(500, 5.0)
    assert account.wait_s(5.0) == pytest.approx(0.5)
    account.spend(1000, 5.0)
    assert account.wait_s(5.5) == pytest.approx(1.0)
    assert account.wait_s(100.0) == 0
    account.spend(100, 100.0)
    assert account.wait_s(100.0) == pytest.approx(0.1), "a quiet time saves nothing up"


def test_a_damaged_account_begins_anew(tmp_path):
    box = Outbox(tmp_path / "o")
    box.keep_note(NOTE, b"{]")
    assert spending(box, day_max_bytes=MAX).shares()[0].left_bytes == 90_000


@pytest.mark.parametrize("config", [{"rate_bytes_s": 5}, {"day_max_bytes": 100}])
def test_limits_within_which_nothing_can_go_are_refused(tmp_path, config):
    with pytest.raises(CallerError, match="at least"):
        Spending(Outbox(tmp_path / "o"), TelemetryConfig(**config))
