"""Trials: each step is one write of the state, and ends in the package before, in this one, or in what is told."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ferryman.runtime.contracts.errors import DeviceError
from ferryman.runtime.contracts.record import decode, encode
from ferryman.runtime.contracts.rollout import Health
from ferryman.runtime.contracts.slot import BAD_MAX, BadPackage, HealthRules, Slot, SlotState, Trial
from ferryman.runtime.install import install, repick
from ferryman.runtime.install_cli import confirm_command
from ferryman.runtime.slots import SlotStore, with_bad
from ferryman.runtime.staged import install_staged
from ferryman.runtime.trial import confirm, count_start, fail, is_bad, judge
from tests.support.packages import sha256_of, stage, write_tiny_package

RULES = HealthRules(starts_max=3)
TRIAL = Trial(desired_version=7, rollout="r", rules=RULES, began_at_ns=1)


def accept(_directory, _manifest):
    return ()


def put_on_trial(store, package):
    manifest, sha256 = stage(package, store.root / "download" / package.stem)
    options = {"package_sha256": sha256, "release": "add/1", "trial": TRIAL, "golden": accept}
    return install_staged(store, store.root / "download" / package.stem, manifest, **options)


@pytest.fixture
def packages(tmp_path):
    return [write_tiny_package(tmp_path / f"{n}.ferry", added=float(n)) for n in (1, 2, 3)]


@pytest.fixture
def store(tmp_path, packages):
    """add-2 is on trial in b, add-1 was confirmed in a."""
    store = SlotStore(tmp_path / "root")
    install(packages[0], store.root, golden=accept)
    put_on_trial(store, packages[1])
    return store


@pytest.fixture
def alone(tmp_path, packages):
    """add-2 is on trial, and there is nothing before it."""
    store = SlotStore(tmp_path / "alone")
    put_on_trial(store, packages[1])
    return store


def serving(store):
    return store.active().manifest.name


def test_a_confirmed_package_serves_for_good(store, packages):
    assert confirm(store, "f" * 64) == store.read_state()
    assert store.read_state().trial == TRIAL
    state = confirm(store, sha256_of(packages[1]))
    assert state == store.read_state()
    assert (state.trial, state.bad, state.previous.package_name) == (None, (), "add-1")
    assert confirm(store) == state
    assert fail(store, "too late") == state
    assert serving(store) == "add-2"


def test_starts_are_written_down_and_too_many_are_a_crash_loop(store, packages):
    for starts in (1, 2, 3):
        assert count_start(store).trial.starts == starts
        assert store.read_state().trial.starts == starts
    state = count_start(store)
    assert state == store.read_state()
    assert (state.trial, state.previous) == (None, None)
    assert serving(store) == "add-1"
    assert is_bad(state, sha256_of(packages[1])).reason == "a crash loop: the agent started 4 times during the trial"
    before = (store.root / "state.json").stat().st_ino
    assert count_start(store) == state
    assert (store.root / "state.json").stat().st_ino == before  # without a trial, nothing is written


def test_a_start_while_an_install_holds_the_store_is_an_error_that_changes_nothing(store, monkeypatch):
    monkeypatch.setattr("ferryman.runtime.trial._LOCK_WAIT_S", 0.1)
    with store.lock(), pytest.raises(DeviceError, match="another install"):
        count_start(store)
    assert count_start(store).trial.starts == 1


def test_two_at_once_wait_for_each_other(store):
    code = (
        "import sys; from pathlib import Path; from ferryman.runtime.slots import SlotStore; "
        "from ferryman.runtime.trial import count_start; count_start(SlotStore(Path(sys.argv[1])))"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(store.root)]) for _ in range(3)]
    assert [one.wait(60) for one in running] == [0, 0, 0]
    assert store.read_state().trial.starts == 3


def test_a_failed_package_is_bad_and_the_one_before_serves(store, packages):
    assert fail(store, "no matter", "f" * 64).trial == TRIAL
    state = fail(store, "it drifts", sha256_of(packages[1]))
    assert serving(store) == "add-1"
    (bad,) = state.bad
    assert (bad.package_sha256, bad.reason, bad.at_ns > 0) == (sha256_of(packages[1]), "it drifts", True)


@pytest.mark.parametrize("crashes", [False, True])
@pytest.mark.parametrize("damaged", [False, True])
def test_with_nothing_to_go_back_to_only_what_crashes_stops_serving(alone, store, packages, crashes, damaged):
    if damaged:
        alone = store
        (store.directory("a") / "artifacts" / "model.tflite").write_bytes(b"rot")
    state = fail(alone, "why", crashes=crashes)
    assert is_bad(state, sha256_of(packages[1]))
    assert (state.trial, state.previous) == (None, None)
    if crashes:
        assert state.active is None
        install(packages[2], alone.root, golden=accept)
    else:
        assert serving(alone) == "add-2"
        install(packages[2], alone.root, golden=accept)
        assert alone.read_state().previous.package_name == "add-2"
    assert serving(alone) == "add-3"


def test_a_push_by_hand_ends_a_trial_and_keeps_the_package_that_is_known_to_be_good(store, packages):
    install(packages[2], store.root, golden=accept)
    state = store.read_state()
    assert (state.active.package_name, state.active.name, state.trial) == ("add-3", "b", None)
    assert state.previous.package_name == "add-1"
    assert state.bad == ()


def test_a_push_by_hand_that_fails_during_a_trial_leaves_the_package_before_it(store, packages):
    def refuse(_directory, _manifest):
        raise DeviceError("no")

    with pytest.raises(DeviceError, match=r"^no; the trial of add-2 has ended, and add-1 serves again$"):
        install(packages[2], store.root, golden=refuse)
    state = store.read_state()
    assert (state.active.package_name, state.previous, state.trial) == ("add-1", None, None)
    assert serving(store) == "add-1"


def test_a_push_that_this_device_cannot_run_leaves_the_trial(store, tmp_path):
    before = store.read_state()
    with pytest.raises(DeviceError, match="can run no variant"):
        install(write_tiny_package(tmp_path / "alien.ferry", isa=("avx9000",)), store.root, golden=accept)
    assert store.read_state() == before


@pytest.mark.parametrize("now_ns", [5, 10**19])
def test_a_clock_that_jumps_is_only_written_down(store, packages, monkeypatch, now_ns):
    monkeypatch.setattr("time.time_ns", lambda: now_ns)
    assert count_start(store).trial.starts == 1
    state = fail(store, "slow")
    assert (state.active.package_name, state.bad[0].at_ns) == ("add-1", now_ns)
    put_on_trial(store, packages[2])
    confirm(store)
    assert store.read_state().active.installed_at_ns == now_ns
    assert serving(store) == "add-3"
    assert store.rollback().active.package_name == "add-1"


def test_a_push_of_the_package_before_ends_the_trial_and_writes_nothing(store, packages):
    inode = (store.directory("a") / "manifest.json").stat().st_ino
    result = install(packages[0], store.root, golden=accept)
    assert (result.changed, result.written_bytes, result.active.package_name) == (True, 0, "add-1")
    assert store.read_state() == SlotState(active=result.active)
    assert (store.directory("a") / "manifest.json").stat().st_ino == inode


def test_a_push_during_a_trial_that_has_no_way_back_makes_it_one(alone, packages):
    install(packages[2], alone.root, golden=accept)
    state = alone.read_state()
    assert (state.active.package_name, state.previous.package_name, state.trial) == ("add-3", "add-2", None)


def test_a_push_of_what_is_on_trial_or_a_repick_leaves_the_trial(store, packages):
    assert not install(packages[1], store.root, golden=accept).changed
    repick(store.root, "smallest", golden=accept)
    assert store.read_state().trial == TRIAL
    assert store.read_state().previous.package_name == "add-1"


def test_a_rollback_by_hand_during_a_trial_ends_it_and_the_package_does_not_come_back_by_itself(store, packages):
    state = store.rollback()
    assert (state.active.package_name, state.trial, state.previous) == ("add-1", None, None)
    assert is_bad(state, sha256_of(packages[1])).reason == "rolled back by hand"
    with pytest.raises(DeviceError, match=r"add-2 .* was rolled back by hand on this device .*--force"):
        put_on_trial(store, packages[1])
    install(packages[1], store.root, golden=accept)  # by hand it may
    assert store.read_state().bad == ()


def test_a_rollback_to_a_package_that_is_not_the_way_back_changes_nothing(store, packages):
    before = store.read_state()
    with pytest.raises(DeviceError, match=r"the way back is add-1 .*, not ffffffffffff; push that package"):
        store.rollback("rollout r went back", "f" * 64)
    assert store.read_state() == before
    state = store.rollback("rollout r went back", sha256_of(packages[0]))
    assert is_bad(state, sha256_of(packages[1])).reason == "rollout r went back"


def test_a_bad_package_that_someone_goes_back_to_is_bad_no_more(alone, packages):
    fail(alone, "slow")
    put_on_trial(alone, packages[2])
    assert is_bad(alone.rollback(), sha256_of(packages[1])) is None
    assert is_bad(alone.read_state(), sha256_of(packages[2]))
    assert serving(alone) == "add-2"


def test_the_newest_bad_packages_are_kept_each_once():
    slot = Slot(name="a", package_sha256="", package_name="", manifest_sha256="", installed_at_ns=0)
    state = SlotState()
    for number in [*range(BAD_MAX + 5), 20, 20]:
        state = SlotState(
            bad=with_bad(SlotState(active=replace(slot, package_sha256=str(number)), bad=state.bad), "", 0)
        )
    assert [one.package_sha256 for one in state.bad] == [*map(str, (*range(5, 20), *range(21, BAD_MAX + 5))), "20"]


def test_a_state_that_an_older_or_later_ferryman_wrote_is_read(store):
    path = store.root / "state.json"
    path.write_bytes(path.read_bytes().replace(b'"trial":{', b'"later":{"x":1},"trial":{"later":2,'))
    assert store.read_state().trial == TRIAL
    path.write_bytes(b'{"active":null,"previous":null,"schema":1}')  # of before there were trials
    assert store.read_state() == SlotState()
    state = SlotState(bad=(BadPackage(package_sha256="f", reason="r", at_ns=1),))
    assert decode(encode(state), SlotState) == state


HEALTHY = Health(seconds=60, starts=1, requests=100, errors=0, latency_ns=2_000_000, before_latency_ns=1_000_000)


@pytest.mark.parametrize(
    ("rules", "change", "reason"),
    [
        ({}, {}, None),
        ({}, {"requests": 0, "latency_ns": None}, None),
        ({}, {"starts": 4, "seconds": 0}, r"a crash loop: .* 4 times"),
        ({}, {"errors": 5}, None),
        ({}, {"errors": 6}, r"6 of 100 requests failed, more than 5\.0%"),
        ({}, {"errors": 6, "seconds": 1}, r"6 of 100"),
        ({}, {"errors": 4, "requests": 4, "seconds": 1}, None),  # may be chance still
        ({}, {"errors": 1, "requests": 1}, r"1 of 1 requests"),
        ({"errors_max": 0.0}, {"errors": 0}, None),
        ({"latency_max_ms": 2.0}, {}, None),
        ({"latency_max_ms": 1.9}, {}, r"takes 2\.000 ms \(median\), more than 1\.9 ms"),
        ({"latency_max_ms": 1.9}, {"seconds": 59}, None),
        ({"latency_max_ms": 9.0}, {"latency_ns": None}, "no call of it could be timed"),
        ({"slower_max": 2.0}, {}, None),
        ({"slower_max": 1.5}, {}, r"2\.00 times as long as before .* more than 1\.5 times"),
        ({"slower_max": 1.5}, {"before_latency_ns": None, "latency_ns": None}, None),
        ({"drift_max": 0.5}, {"drift": 0.5}, None),
        ({"drift_max": 0.4}, {"drift": 0.5}, r"0\.500 away .* more than 0\.4"),
        ({"drift_max": 0.4}, {"drift": None}, None),
    ],
)
def test_what_is_against_a_package(rules, change, reason):
    found = judge(HealthRules(**rules), replace(HEALTHY, **change))
    if reason is None:
        assert found is None
    else:
        assert re.search(reason, found)


@given(
    st.builds(
        Health,
        seconds=st.floats(0, 1e6),
        starts=st.integers(0, 5),
        requests=st.integers(0, 10),
        errors=st.integers(0, 10),
        latency_ns=st.none() | st.integers(0, 10**10),
        before_latency_ns=st.none() | st.integers(0, 10**10),
        drift=st.none() | st.floats(0, 1),
    )
)
def test_any_health_is_judged_without_an_error(health):
    rules = HealthRules(latency_max_ms=1.0, slower_max=1.0, drift_max=0.1)
    reason = judge(rules, health)
    assert reason is None or reason.isprintable()
    if health.seconds < rules.window_s and health.starts <= rules.starts_max and health.errors < 5:
        assert reason is None


def test_a_trial_is_confirmed_by_hand_once(store):
    def by_hand(*words):
        return CliRunner().invoke(confirm_command, ["--root", str(store.root), *words])

    done = by_hand()
    assert (done.exit_code, done.output) == (0, "add-2 in slot b serves for good\n")
    state = store.read_state()
    assert state.trial is None
    assert state.previous is not None  # the way back is there still
    written = (store.root / "state.json").stat().st_mtime_ns
    again = by_hand()
    assert (again.exit_code, again.output) == (0, "no package is on trial; nothing was changed\n")
    assert decode(by_hand("--json").output.encode(), SlotState) == state
    assert (store.root / "state.json").stat().st_mtime_ns == written


def test_what_came_on_trial_in_between_is_not_confirmed(store, packages, monkeypatch):
    seen = store.read_state()
    put_on_trial(store, packages[2])
    real = SlotStore.read_state
    first = iter([seen])
    monkeypatch.setattr(SlotStore, "read_state", lambda self: next(first, None) or real(self))

    done = CliRunner().invoke(confirm_command, ["--root", str(store.root)])

    assert done.exit_code == 1
    assert "another package came on trial" in done.output
    assert store.read_state().trial is not None


def test_where_nothing_was_installed_nothing_is_confirmed(tmp_path):
    done = CliRunner().invoke(confirm_command, ["--root", str(tmp_path / "none")])
    assert done.exit_code == 0
    assert not (tmp_path / "none").exists()
