"""Each rule, on a store that simulated devices talk to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from sqlalchemy import select

from ferryman.devices.fleet.alerts import kept, looks, rules
from ferryman.devices.fleet.alerts.config import Config
from ferryman.devices.fleet.alerts.drifting import Reference
from ferryman.devices.fleet.alerts.watch import Watch
from ferryman.devices.fleet.store import tables
from ferryman.devices.fleet.store.store import Store, open_store
from ferryman.profiler.drift import DriftMonitor, Served
from tests.support.alerts import SECOND, Note, Scene, sample
from tests.support.postgresql import new_database


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, tmp_path: Path) -> Iterator[Store]:
    with contextlib.ExitStack() as stack:
        where = tmp_path / "store.db" if request.param == "sqlite" else stack.enter_context(new_database())
        yield stack.enter_context(contextlib.closing(open_store(where)))


@pytest.fixture
def scene(store: Store) -> Scene:
    return Scene(store)


class Run:
    """A watch that looks every five seconds."""

    def __init__(self, scene: Scene, *some: rules.Rule, **config) -> None:
        self.scene = scene
        self.watch = Watch(Config(rules=some, **config))
        self.heard_s: float | None = scene.now_ns / SECOND
        self.look()

    def look(self) -> list[str]:
        """The devices whose alerts begin."""
        changes = self.watch.check(self.scene.store, self.scene.now_ns, self.heard_s)
        return sorted(alert.device for alert in changes.opened)

    def wait(self, seconds: float, every_s: float = 5) -> list[str]:
        found: list[str] = []
        for _ in range(int(seconds / every_s)):
            self.scene.wait(every_s)
            found += self.look()
        return found

    @property
    def open(self) -> dict[str, str]:
        """Device -> text."""
        return {row.alert.device: row.alert.text for row in kept.read(self.scene.store) if not row.alert.until_ns}


def test_a_device_that_stays_offline_is_an_alert_and_is_over_when_it_is_back(scene):
    scene.status("pi", "other")
    run = Run(scene, rules.Offline(for_s=60, clear_s=10))
    run.wait(20)
    scene.status("pi", online=False)
    assert run.wait(55) == []
    assert run.wait(15) == ["pi"]
    assert run.open == {"pi": "is offline"}
    scene.status("pi")
    run.wait(20)
    assert run.open == {}


def test_who_goes_offline_on_purpose_is_no_alert(scene):
    scene.status("pi", "gone")
    run = Run(scene, rules.Offline(for_s=60, silent_s=600))
    run.wait(20)
    scene.status("pi", online=False, mode="offline")
    scene.status("gone", online=False)
    assert run.wait(2000, 50) == ["gone"]
    scene.status("gone", online=False, mode="offline")
    run.wait(60)
    assert run.open == {}
    scene.status("pi", "gone", mode="full")
    scene.status("pi", online=False)
    assert run.wait(100) == ["pi"]


def test_offline_counts_from_when_it_went_though_the_collector_starts_anew(scene):
    scene.status("pi", online=False)
    scene.wait(3600)
    run = Run(scene, rules.Offline(for_s=60))
    assert run.wait(10) == []  # the broker may yet tell that it is back
    assert run.wait(10) == ["pi"]
    assert Run(scene, rules.Offline(for_s=60)).wait(60) == []  # it is open already
    (row,) = kept.read(scene.store)
    assert row.alert.since_ns == scene.now_ns - (3600 + 20 + 60) * SECOND


def test_silence_counts_only_while_the_collector_hears_the_broker(scene):
    scene.status("pi")
    run = Run(scene, rules.Offline(for_s=60, silent_s=600))
    run.heard_s = None
    assert run.wait(1000, 100) == []
    run.heard_s = scene.now_ns / SECOND
    assert run.wait(590, 59) == []
    assert run.wait(20) == ["pi"]
    assert "silent" in run.open["pi"]


def test_what_the_broker_kept_of_a_device_is_no_sign_of_its_life(scene):
    """It died with the broker, which so never told its last will: the collector asks for what is retained anew."""
    scene.status("pi")
    run = Run(scene, rules.Offline(for_s=60, silent_s=1800))
    for _ in range(4):
        assert run.open == {}
        scene.retained("pi")
        run.wait(600, 50)
    assert "silent" in run.open["pi"]


def slow(scene: Scene, run: Run, latency_ms: float, periods: int = 12, **values: float) -> list[str]:
    found: list[str] = []
    for _ in range(periods):
        scene.send("pi", sample(latency_ms=latency_ms, **values))
        found += run.wait(10, 10)
    return found


def test_latency_beyond_that_of_the_past_is_an_alert_until_it_is_back(scene):
    scene.status("pi")
    for hour in range(2, 50):
        scene.roll("pi", "latency_ms", "aaaa", hour, [10.0] * 30)
    run = Run(scene, rules.Slower(for_s=0, clear_s=0))
    assert slow(scene, run, 12.0) == []
    assert slow(scene, run, 14.0, periods=30) == ["pi"]
    assert "14 ms, more than 1.3 times that of the same package (10 ms)" in run.open["pi"]
    slow(scene, run, 10.5, periods=40)
    assert run.open == {}


def test_what_lasts_does_not_become_the_past_it_is_compared_with(scene):
    scene.status("pi")
    for hour in range(2, 50):
        scene.roll("pi", "latency_ms", "aaaa", hour, [10.0] * 30)
    run = Run(scene, rules.Slower(for_s=0, clear_s=0))
    assert slow(scene, run, 14.0, periods=30) == ["pi"]
    again = Run(scene, rules.Slower(for_s=0, clear_s=0))  # restarted, after the past was replaced
    for hour in range(50, 160):
        scene.roll("pi", "latency_ms", "aaaa", hour, [14.0] * 300)
    assert slow(scene, again, 14.0, periods=30) == []
    assert list(run.open) == ["pi"]


def test_a_new_package_is_compared_with_the_one_before(scene):
    scene.status("pi")
    for hour in range(2, 50):
        scene.roll("pi", "latency_ms", "bbbb", hour, [5.0] * 30)
    run = Run(scene, rules.Slower(for_s=0, clear_s=0))
    assert slow(scene, run, 10.0) == ["pi"]
    assert "of the package before, bbbb (5 ms)" in run.open["pi"]
    scene.send("pi", sample(latency_ms=5.0, package="bbbb"))  # rolled back
    run.wait(10)
    assert run.open == {}


def test_few_or_noisy_periods_raise_nothing(scene):
    scene.status("pi")
    for hour in range(2, 50):
        scene.roll("pi", "latency_ms", "aaaa", hour, [10.0] * 30)
    run = Run(scene, rules.Slower(for_s=0))
    assert slow(scene, run, 50.0, periods=9) == []
    noisy = Scene(scene.store, scene.now_ns)
    noisy.status("other")
    for latency_ms in (9.0, 25.0) * 16:  # half of them are as ever
        scene.send("other", sample(latency_ms=latency_ms))
        assert "other" not in run.wait(10)


def test_a_past_of_few_inferences_raises_nothing(scene):
    scene.status("pi")
    scene.roll("pi", "latency_ms", "aaaa", 5, [1.0] * 99)
    run = Run(scene, rules.Slower(for_s=0))
    assert slow(scene, run, 50.0, periods=12) == []


def test_energy_is_looked_at_in_the_same_way(scene):
    scene.status("pi")
    scene.roll("pi", "energy_mj", "aaaa", 5, [3.0] * 40)
    run = Run(scene, rules.Costlier(for_s=0))
    assert slow(scene, run, 10.0, energy_mj=4.5) == ["pi"]
    assert "energy of an inference is 4.5 mJ" in run.open["pi"]


def test_throttling_is_an_alert_where_most_samples_tell_of_it(scene):
    scene.status("pi", "cool")
    run = Run(scene, rules.Throttled(for_s=0, clear_s=0))
    for n in range(10):
        scene.send("pi", sample(throttled=float(n % 3 > 0)))
        scene.send("cool", sample(throttled=float(n % 3 == 0)))
        run.wait(10)
    assert run.open == {"pi": "is throttled in 60% of its samples"}


def test_failed_inferences_are_an_alert_from_so_many_requests_on(scene):
    scene.status("pi", "idle")
    run = Run(scene, rules.Failing())
    scene.send("pi", *[sample(inferences=9.0, errors=1.0)] * 3)
    scene.send("idle", sample(inferences=1.0, errors=1.0))
    assert run.wait(10) == ["pi"]
    assert run.open["pi"] == "3 of 30 inferences failed"


def test_dropped_records_are_an_alert_for_a_while_whenever_they_are_told(scene):
    scene.status("pi")
    run = Run(scene, rules.Dropping(window_s=60, clear_s=0))
    scene.send("pi", Note("dropped", {"records": 40, "first": 1, "last": 40, "total": 40}, age_s=90_000))
    assert run.wait(10) == ["pi"]
    assert run.open["pi"] == "its outbox was full and dropped 40 records"
    run.wait(70)
    assert run.open == {}


def test_a_full_disk_is_an_alert(scene):
    scene.status("pi")
    run = Run(scene, rules.FullDisk(for_s=0))
    scene.send("pi", sample(disk_free_mb=120.0))
    assert run.wait(10) == ["pi"]
    assert run.open["pi"] == "120 MB are free on its disk"


def test_a_disk_that_takes_nothing_is_an_alert_until_it_does_again(scene):
    scene.status("pi", "other")
    run = Run(scene, rules.RefusingDisk(for_s=30, clear_s=10))
    scene.status("pi", storage="read-only")
    assert run.wait(25) == []
    assert run.wait(15) == ["pi"]
    assert run.open == {"pi": "its disk takes no telemetry and no updates: read-only"}
    scene.status("pi", online=False, storage="read-only")  # who is away tells nothing
    run.wait(60)
    assert list(run.open) == ["pi"]
    scene.status("pi")
    run.wait(20)
    assert run.open == {}


def test_a_clock_that_stays_unsure_is_an_alert(scene):
    scene.status("pi")
    run = Run(scene, rules.LostClock(for_s=100, clear_s=0))
    for _ in range(12):
        scene.send("pi", sample(sure=False))
        run.wait(10)
    assert run.open == {"pi": "its clock is not synchronised"}
    scene.send("pi", sample())
    run.wait(10)
    assert run.open == {}


def test_quarantine_that_grows_is_an_alert_of_the_device_whose_topics_they_came_on(scene):
    scene.status("pi")
    scene.garble("pi", 50)  # before anybody looked
    scene.wait(10)
    run = Run(scene, rules.Garbled(messages=10))
    scene.garble("pi", 9)
    assert run.wait(10) == []
    scene.garble("pi", 1)
    assert run.wait(10) == ["pi"]


@pytest.mark.parametrize("sure", [True, False])
def test_what_is_replayed_raises_nothing(scene, sure):
    scene.status("pi")
    run = Run(scene, rules.FullDisk(for_s=0), rules.Throttled(for_s=0), rules.Failing())
    scene.send("pi", sample(disk_free_mb=9000.0, sure=sure))
    run.wait(10)
    bad = [sample(disk_free_mb=1.0, throttled=1.0, errors=20.0, age_s=7200 - n, sure=sure) for n in range(40)]
    scene.send("pi", *bad)
    assert run.wait(20) == []
    scene.send("pi", sample(disk_free_mb=1.0, sure=sure))  # while this is of now
    assert run.wait(10) == ["pi"]


def drifts(mean: float, inferences: int, from_ns: int, seconds: float = 4000) -> Note:
    monitor = DriftMonitor(period_s=86_000)
    random = np.random.default_rng(int(mean * 100) + inferences)
    for n in range(inferences):
        array = random.normal(mean, 1, 64).astype(np.float32)
        served = Served("net", "aaaa", "fp32", "fake", ("x",), ("y",), (array,), (array * 2,))
        monitor.observe(served, from_ns + int(seconds * SECOND * n / max(inferences - 1, 1)))
    return Note("drift", monitor.flush()[0])


def test_shifted_input_is_an_alert_that_a_restart_does_not_forget(scene):
    scene.status("pi")
    run = Run(scene, rules.Drifted(), reference=Reference(inferences=200, over_s=3600))
    for _ in range(2):  # the reference, in two records
        scene.send("pi", drifts(0.0, 150, scene.now_ns))
        run.wait(10)
    scene.send("pi", drifts(0.05, 150, scene.now_ns))
    assert run.wait(10) == []
    again = Run(scene, rules.Drifted(), reference=Reference(inferences=200, over_s=3600))
    scene.send("pi", drifts(1.5, 60, scene.now_ns))  # too few to tell
    assert again.wait(10) == []
    scene.send("pi", drifts(1.5, 60, scene.now_ns))
    assert again.wait(10) == ["pi"]
    assert " of net is 0.5" in again.open["pi"]
    scene.send("pi", drifts(0.0, 150, scene.now_ns))
    again.wait(10)
    assert again.open == {}


def test_rules_mean_the_devices_of_their_query(scene):
    scene.status("pi", site="lab")
    scene.status("other", site="barn")
    run = Run(scene, rules.FullDisk(for_s=0, devices="site=lab"))
    for device in ("pi", "other"):
        scene.send(device, sample(disk_free_mb=1.0))
    assert run.wait(10) == ["pi"]
    scene.status("pi", site="barn")
    run.wait(5)
    assert run.open == {}


def test_alerts_of_a_rule_that_is_gone_end(scene):
    scene.status("pi")
    run = Run(scene, rules.FullDisk(for_s=0))
    scene.send("pi", sample(disk_free_mb=1.0))
    run.wait(10)
    run.watch.configure(Config(rules=(rules.Failing(),)))
    run.look()
    assert run.open == {}


def test_two_who_look_at_once_raise_one_alert(scene):
    scene.status("pi")
    runs = [Run(scene, rules.FullDisk(for_s=0)) for _ in range(2)]
    scene.send("pi", sample(disk_free_mb=1.0))
    scene.wait(10)
    for run in runs:
        run.watch.picture.refresh(scene.store, scene.now_ns)
    for run in runs:
        run.look()
    assert len(kept.read(scene.store)) == 1


def test_references_of_long_ago_make_room(scene):
    scene.status("pi")
    run = Run(scene, rules.Drifted())
    for n in range(20):
        note = drifts(0.0, 20, scene.now_ns)
        scene.send("pi", note._replace(body=msgspec.structs.replace(note.body, package_sha256=f"{n:04}")))
        run.wait(10)
    left = scene.store.read(select(tables.references.c.serves))
    assert sorted(row.serves for row in left) == [f"{n:04}/fp32/fake" for n in range(4, 20)]


def test_a_body_that_cannot_be_read_stops_nothing(scene, caplog):
    scene.status("pi", "other")
    run = Run(scene, rules.FullDisk(for_s=0))
    scene.send("pi", Note("sample", {"no": "sample"}))
    scene.send("other", sample(disk_free_mb=1.0))
    assert run.wait(10) == ["other"]
    assert "a sample of pi cannot be read" in caplog.text


def test_a_count_beyond_bounds_is_one_devices_and_blinds_nobody(scene, caplog):
    scene.status("pi", "evil")
    run = Run(scene, rules.Dropping(), rules.FullDisk(for_s=0))
    for _ in range(3):
        scene.send("evil", Note("dropped", {"records": 10**400}))
        scene.send("pi", sample(disk_free_mb=3.0))
        run.wait(5)
    assert run.open == {"pi": "3 MB are free on its disk"}
    assert sum("a dropped of evil cannot be read" in record.getMessage() for record in caplog.records) == 1


def test_a_rule_that_fails_fails_alone_and_is_logged_once(scene, monkeypatch, caplog):
    scene.status("pi")
    run = Run(scene, rules.Dropping(), rules.FullDisk(for_s=0))

    def fail(*_):
        raise OverflowError("int too large to convert to float")

    monkeypatch.setitem(looks._LOOKS, rules.Dropping, fail)
    for _ in range(3):
        scene.send("pi", sample(disk_free_mb=3.0))
        run.wait(5)
    assert run.open == {"pi": "3 MB are free on its disk"}
    assert sum("alerts: dropped cannot be looked at" in record.getMessage() for record in caplog.records) == 1


def test_a_device_of_which_a_rule_cannot_tell_why_keeps_no_other_from_its_alert(scene, monkeypatch):
    scene.status("pi", "evil")
    run = Run(scene, rules.FullDisk(for_s=0))

    def found(row):
        if run.watch.picture.names[row] == "evil":
            raise ValueError("no words")
        return looks.Found("a\0b" + "x" * 1000, since_s=float("inf"))

    full_disk = looks.full_disk
    monkeypatch.setitem(looks._LOOKS, rules.FullDisk, lambda rule, view: full_disk(rule, view)._replace(found=found))
    for name in ("pi", "evil"):
        scene.send(name, sample(disk_free_mb=3.0))
    run.wait(10)
    assert set(run.open) == {"pi", "evil"}
    assert len(run.open["pi"]) == 500
    assert run.open["pi"].startswith("a?bx")
