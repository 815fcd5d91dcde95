from __future__ import annotations

import time

import pytest
from msgspec.structs import replace

from ferryman.devices.fleet.rollout.engine import Engine
from ferryman.devices.fleet.rollout.overview import device_line, overview
from ferryman.devices.fleet.rollout.query import Target
from ferryman.devices.fleet.rollout.records import Plan, Progress, Row, Thresholds, desired_of, standing
from ferryman.devices.fleet.rollout.start import Known, cut, make_plan
from ferryman.runtime.contracts.errors import CallerError, WireError
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import decode, encode
from ferryman.runtime.contracts.rollout import Desired
from tests.support.rollouts import NEW, OLD, FakeDevice, S, health, measured

TIMEOUT_S, SOAK_S = 100.0, 10.0


class World:
    """An engine, its devices, and a clock; what is committed is kept as bytes."""

    def __init__(self, devices=10, *, offline=(), found=(), **options):
        options = {"rings": "1,50%,100%", "soak_s": SOAK_S, "ring_timeout_s": TIMEOUT_S} | options
        self.now_ns = 1000 * S
        self.plan = make_plan("net/2", NEW, "all", now_ns=self.now_ns, **options)
        made = [FakeDevice(f"d{number}") for number in range(devices)] if isinstance(devices, int) else devices
        self.devices = {one.name: one for one in made}
        self.offline = set(offline)
        known = [
            Known(target=Target(name=one.name, model=one.model), online=one.name not in self.offline)
            for one in self.devices.values()
        ]
        rows = cut(self.plan, known)
        self.saved = {row.device: encode(row) for row in rows}
        self.progress = encode(Progress(rings=1 + max(row.ring for row in rows)))
        self.found = list(found)
        self.log = []
        self.engine = self.restart()
        for one in self.devices.values():
            if one.name not in self.offline:
                self.engine.hear_report(one.first(), self.now_ns)

    def restart(self):
        """Build the engine of what was committed alone."""
        rows = [decode(row, Row) for row in self.saved.values()]
        self.engine = Engine(self.plan, decode(self.progress, Progress), rows, self.found)
        self.engine.connected(self.now_ns)
        return self.engine

    def commit(self):
        changes = self.engine.take()
        if changes is None:
            return
        self.progress = encode(changes.progress)
        self.saved |= {row.device: encode(row) for row in changes.rows}
        self.found += changes.found
        self.log += changes.entries
        self.send()

    def send(self):
        for row in self.engine.rows.values():
            desired = desired_of(row, self.plan)
            if desired and row.device not in self.offline:
                self.devices[row.device].told(desired)

    def turn(self, seconds=1.0):
        """A tick, and all devices do what they were told."""
        self.now_ns += round(seconds * S)
        self.engine.tick(self.now_ns)
        self.commit()
        self.send()  # the broker keeps it for whoever comes
        for device in self.devices.values():
            if device.name not in self.offline:
                for report in device.work():
                    self.engine.hear_report(report, self.now_ns)
        self.commit()

    def run(self, turns=40, seconds=5.0):
        for _ in range(turns):
            self.turn(seconds)
            if self.engine.ended:
                break
        return self.engine.progress.phase

    def ask(self, verb):
        self.engine.request(verb, "me", "", self.now_ns)
        self.commit()

    def stands(self):
        found = {name: standing(row, self.plan, self.now_ns) for name, row in self.engine.rows.items()}
        return {kind: sum(one == kind for one in found.values()) for kind in set(found.values())}

    def asked(self):
        return sum(bool(one.seen) for one in self.devices.values())


def test_a_good_release_goes_ring_by_ring_to_all():
    world = World(10)
    world.turn()
    assert world.asked() == 1
    world.turn(SOAK_S - 1)
    world.turn(1)
    assert world.asked() == 1  # it soaks
    world.turn(SOAK_S)
    world.turn(1)
    assert world.asked() == 5
    assert world.run() == "done"
    assert world.stands() == {"confirmed": 10}
    assert {one.serves for one in world.devices.values()} == {NEW}
    assert all(len(one.seen) == 1 for one in world.devices.values())
    assert [one.what for one in world.log if one.device is None] == [
        *("ring 1 has answered", "opens ring 2", "ring 2 has answered", "opens ring 3", "ring 3 has answered", "done")
    ]


@pytest.mark.parametrize("end", ["rolled-back", "refused", "failed"])
def test_a_bad_release_halts_at_the_canary_and_it_goes_back(end):
    world = World([FakeDevice(f"d{number}", ends=lambda _: end) for number in range(10)])
    assert world.run() == "halted"
    assert world.asked() == 1
    assert {one.serves for one in world.devices.values()} == {OLD}
    assert world.stands() == {"returned": 1, "pending": 9}
    assert "ring 1: 1 of 1 device failed, at most 0 may (5%)" in world.engine.progress.why


def test_what_a_device_failed_with_is_kept_when_it_goes_back_and_forgotten_when_it_is_tried_again():
    devices = [
        FakeDevice(f"d{number}", ends=lambda _: "failed" if _.version == 1 else "confirmed") for number in (0, 1)
    ]
    devices[1].ends = lambda _: "confirmed"
    world = World(devices, rings="100%", thresholds=Thresholds(failures_max="0"))
    assert world.run() == "halted"

    def views():
        view = overview(world.plan, world.engine.progress, world.engine.rows.values(), world.now_ns)
        return {one.device: (one.standing, one.failed, one.error) for one in view.devices}, view.rings[0].health

    found, health = views()
    assert found == {"d0": ("returned", "failed", "runtime: it does not go"), "d1": ("returned", None, "")}
    assert health.failures == 1
    assert sorted((one.device, one.what) for one in world.log if one.device) == [
        *(("d0", "failed"), ("d0", "returned"), ("d1", "confirmed"), ("d1", "returned"))
    ]
    world.restart()
    world.ask("retry")
    assert world.run() == "done"
    found, health = views()
    assert found == {"d0": ("confirmed", None, ""), "d1": ("confirmed", None, "")}
    assert health.failures == 0


def test_a_device_that_cannot_go_back_tells_why_and_what_was_before():
    world = World([FakeDevice("d0", ends=lambda _: "failed")])
    for _ in range(3):
        world.engine.tick(world.now_ns)
        world.commit()
        for report in world.devices["d0"].work():
            if world.devices["d0"].seen[-1].previous:
                wrong = replace(report, state="failed", error=WireError(party="device", message="no such slot"))
                world.engine.hear_report(wrong, world.now_ns)
            else:
                world.engine.hear_report(report, world.now_ns)
    view = overview(world.plan, world.engine.progress, world.engine.rows.values(), world.now_ns)
    assert [(one.standing, one.error) for one in view.devices] == [
        ("stuck", "device: no such slot; before: runtime: it does not go")
    ]
    assert device_line(view.devices[0]).startswith("d0: stuck after failed, device: no such slot")
    assert "stuck" in [one.what for one in world.log]


def test_failures_within_the_bar_do_not_halt_and_one_more_does():
    def some(count):
        devices = [FakeDevice(f"d{number}") for number in range(41)]
        world = World(devices, rings="1,100%", thresholds=Thresholds(failures_max="5%"))
        for row in [row for row in world.engine.rows.values() if row.ring == 1][:count]:
            world.devices[row.device].ends = lambda _: "rolled-back"
        return world

    world = some(2)
    assert world.run() == "done"
    assert world.stands() == {"confirmed": 39, "rolled-back": 2}
    world = some(3)
    assert world.run() == "halted"
    assert world.stands() == {"returned": 41}
    assert {one.serves for one in world.devices.values()} == {OLD}


def test_a_ring_where_all_fail_halts_even_within_the_bar():
    world = World([FakeDevice(f"d{number}", ends=lambda _: "failed") for number in range(9)])
    world.plan = replace(world.plan, thresholds=Thresholds(failures_max="1"))
    world.restart()
    assert world.run() == "halted"
    assert "1 device failed, and none confirmed" in world.engine.progress.why
    assert world.asked() == 1


def test_the_way_back_is_a_release_where_there_was_one_and_else_the_other_slot():
    devices = [
        FakeDevice("a", ends=lambda _: "rolled-back"),
        FakeDevice("b", release=None),
        FakeDevice("c", serves=None),
    ]
    world = World(devices, rings="100%")
    assert world.run() == "halted"
    back = {name: device.seen[-1] for name, device in world.devices.items()}
    assert (back["a"].release, back["a"].package_sha256, back["a"].previous) == ("net/1", OLD, True)
    assert (back["b"].release, back["b"].package_sha256, back["b"].previous) == ("", OLD, True)
    assert not back["c"].previous  # it had nothing: what it was told is taken back, and it keeps what it has
    assert world.engine.rows["c"].state == "cleared"
    assert all(one.seen[-1].version > one.seen[0].version for one in devices[:2])


@pytest.mark.parametrize(
    ("options", "found", "why"),
    [
        ({"slower_max": 1.5}, health(4.0, 2.0), "latency is 2.00 times"),
        (
            {"slower_max": None, "energy_max": 1.2},
            health(energy_j=3.0, before_energy_j=2.0),
            "energy of a call is 1.50",
        ),
        ({"drift_max": 0.1}, health(drift=0.2), "outputs are 0.2 from"),
        ({"slower_max": 1.5}, health(2.9, 2.0), None),
        ({"slower_max": 1.5}, health(4.0, None), None),
        ({"slower_max": 1.5}, None, None),
        ({"drift_max": 0.1}, health(drift=0.05), None),
    ],
)
def test_a_ring_is_promoted_on_measured_health(options, found, why):
    world = World([FakeDevice(f"d{number}", health=found) for number in range(8)], thresholds=Thresholds(**options))
    phase = world.run()
    assert (phase == "halted") == (why is not None)
    if why:
        assert world.asked() == 1
        assert why in world.engine.progress.why


def test_one_slow_device_does_not_halt_what_is_well_for_most():
    devices = [FakeDevice(f"d{number}") for number in range(9)]
    world = World(devices, rings="100%")
    for one in devices[:4]:
        one.health = health(40.0, 2.0)
    assert world.run() == "done"


def test_a_device_that_is_off_holds_nobody_up_and_may_come_later():
    world = World(10, offline=("d1", "d4"))
    assert {world.engine.rows[name].ring for name in ("d1", "d4")} == {2}
    assert world.run(turns=60) == "done"
    assert world.stands() == {"confirmed": 8, "late": 2}
    world.offline.clear()
    world.send()
    for report in world.devices["d1"].work():
        world.engine.hear_report(report, world.now_ns)
    assert world.stands() == {"confirmed": 9, "late": 1}


def test_whom_a_ring_waits_for_is_told():
    world = World(4, rings="2,100%", offline=[f"d{number}" for number in range(4)])

    def waits():
        return overview(world.plan, world.engine.progress, world.engine.rows.values(), world.now_ns).waits

    first = [row.device for row in world.engine.rows.values() if row.ring == 0]
    assert waits() == ""
    world.turn()
    told = f"ring 1 waits for {', '.join(first)}: offline when the rollout began, and not heard of since; one of them"
    assert waits().startswith(told)
    world.run(turns=60)
    assert world.stands() == {"late": 2, "pending": 2}
    assert waits().startswith(told)
    world.offline.clear()
    world.turn()
    assert waits() == ""
    assert world.run() == "done"
    assert waits() == ""


def test_a_ring_where_nobody_answers_promotes_nothing():
    world = World(10)
    (canary,) = (row.device for row in world.engine.rows.values() if row.ring == 0)
    world.offline.add(canary)
    assert world.run(turns=100) == "running"
    assert world.stands() == {"late": 1, "pending": 9}
    world.offline.clear()
    assert world.run() == "done"


def test_a_device_that_falls_silent_while_it_installs_is_a_failure():
    world = World([FakeDevice(f"d{number}", ends=lambda _: "trial") for number in range(4)])
    world.run(turns=3)
    assert world.engine.progress.phase == "running"
    world.turn(TIMEOUT_S + 60)
    assert world.engine.progress.phase == "returning"
    assert "1 of 1 device failed" in world.engine.progress.why


def test_what_the_host_could_not_hear_is_no_device_s_fault():
    world = World([FakeDevice(f"d{number}", ends=lambda _: "trial") for number in range(4)])
    world.turn()
    world.now_ns += 10_000 * S
    world.restart()
    world.turn(1)
    assert world.engine.progress.phase == "running"
    world.turn(61)
    assert world.engine.progress.phase == "returning"


def test_a_device_that_wakes_late_has_its_time_to_install():
    world = World(2, rings="100%", offline=("d1",))
    world.devices["d1"].ends = lambda _: "trial"
    world.turn()
    world.now_ns += round(2 * TIMEOUT_S * S)
    assert world.stands() == {"confirmed": 1, "late": 1}
    world.offline.clear()
    world.send()
    world.turn()
    assert world.stands() == {"confirmed": 1, "trial": 1}
    assert world.engine.progress.phase == "running"


def test_pause_asks_nobody_resume_goes_on():
    world = World(10)
    world.turn()
    world.ask("pause")
    world.run(turns=20)
    assert world.asked() == 1
    assert world.engine.progress.phase == "paused"
    world.restart()
    with pytest.raises(CallerError, match="is paused, and cannot pause now; it can abort, resume, retry, roll-back"):
        world.ask("pause")
    world.ask("resume")
    assert world.run() == "done"


def test_a_threshold_halts_a_paused_rollout_too():
    world = World([FakeDevice(f"d{number}", ends=lambda _: "rolled-back") for number in range(4)])
    world.engine.tick(world.now_ns)
    world.commit()
    world.ask("pause")
    assert world.run() == "halted"


def test_abort_takes_back_what_is_not_confirmed():
    world = World(10, rings="50%,100%")
    world.turn()
    slow = [row.device for row in world.engine.rows.values() if row.ring == 0][:2]
    for name in slow:
        report = world.devices[name].report(world.devices[name].seen[-1], "downloading")
        world.devices[name].serves = OLD
        world.engine.hear_report(replace(report, package_sha256=OLD, release="net/1"), world.now_ns)
    world.ask("abort")
    assert world.run() == "aborted"
    assert world.stands() == {"confirmed": 3, "returned": 2, "pending": 5}
    with pytest.raises(CallerError, match="is aborted, and cannot resume"):
        world.ask("resume")


def test_a_rollout_that_is_done_can_be_taken_back_whole():
    world = World(5)
    assert world.run() == "done"
    world.ask("roll-back")
    assert world.run() == "aborted"
    assert {one.serves for one in world.devices.values()} == {OLD}


def test_only_those_that_failed_are_tried_again():
    devices = [FakeDevice(f"d{number}") for number in range(10)]
    world = World(devices, rings="100%", thresholds=Thresholds(failures_max="2"))
    devices[3].ends = devices[7].ends = lambda _: "rolled-back"
    assert world.run() == "done"
    devices[3].ends = lambda _: "confirmed"
    world.ask("retry")
    assert world.run() == "done"
    assert world.stands() == {"confirmed": 9, "rolled-back": 1}
    assert [len(one.seen) for one in devices] == [1, 1, 1, 2, 1, 1, 1, 2, 1, 1]
    assert devices[3].seen[-1].force
    devices[7].ends = lambda _: "confirmed"
    world.ask("retry")
    assert world.run() == "done"
    with pytest.raises(CallerError, match="no device that failed"):
        world.ask("retry")


def test_after_a_halt_a_retry_begins_where_it_was():
    world = World([FakeDevice(f"d{number}", ends=lambda _: "failed") for number in range(6)])
    assert world.run() == "halted"
    for one in world.devices.values():
        one.ends = lambda _: "confirmed"
    world.ask("retry")
    assert world.run() == "done"
    assert world.stands() == {"confirmed": 6}


def test_without_roll_back_a_halt_leaves_devices_as_they_are():
    devices = [FakeDevice(f"d{number}") for number in range(4)]
    world = World(devices, rings="100%", roll_back=False, thresholds=Thresholds(failures_max="0"))
    devices[0].ends = lambda _: "rolled-back"
    assert world.run() == "halted"
    assert [one.serves for one in devices] == [OLD, NEW, NEW, NEW]


def test_by_hand_every_ring_but_the_first_waits():
    world = World(10, manual=True)
    for ring, asked in ((1, 1), (2, 5)):
        assert world.run(turns=10) == "approval"
        assert world.asked() == asked
        world.restart()
        world.ask("approve")
        assert world.engine.progress.approved == ring
    assert world.run() == "done"
    with pytest.raises(CallerError, match="is done, and cannot approve"):
        world.ask("approve")


def test_so_many_at_a_time():
    world = World(20, rings="100%", parallel=3)
    most = 0
    for _ in range(40):
        world.now_ns += S
        world.engine.tick(world.now_ns)
        world.commit()
        under_way = sum(one.desired is not None for one in world.devices.values())
        most = max(most, under_way)
        for device in list(world.devices.values())[::2] if world.now_ns % 2 else world.devices.values():
            for report in device.work():
                world.engine.hear_report(report, world.now_ns)
        world.commit()
    assert most == 3
    assert world.run() == "done"


def test_a_later_rollout_has_the_device():
    world = World(4, rings="100%")
    world.engine.tick(world.now_ns)
    world.commit()
    later = Desired(version=99, rollout="9" + world.plan.id, release="net/3", package_sha256="3" * 64)
    world.engine.hear_desired("d1", later, world.now_ns)
    assert world.engine.rows["d1"].state == "superseded"
    assert world.run() == "done"
    assert world.stands() == {"confirmed": 3, "superseded": 1}


def test_a_later_rollout_has_a_device_that_was_not_asked_yet():
    world = World(4)
    last = next(row.device for row in world.engine.rows.values() if row.ring == 2)
    later = Desired(version=1, rollout="9" + world.plan.id, release="net/3", package_sha256="3" * 64)
    world.engine.hear_desired(last, later, world.now_ns)
    assert world.run() == "done"
    assert not world.devices[last].seen


def test_what_an_earlier_rollout_counted_is_counted_on():
    world = World(2, rings="100%")
    world.engine.hear_desired(
        "d0", Desired(version=41, rollout="19690101T000000-0000", release="net/1", package_sha256=OLD), world.now_ns
    )
    world.engine.tick(world.now_ns)
    world.commit()
    assert world.devices["d0"].version == 42
    # and where it is told too late, the device is told again
    early = Desired(version=7, rollout="19690101T000000-0000", release="net/1", package_sha256=OLD)
    world.engine.hear_report(world.devices["d1"].report(early, "confirmed"), world.now_ns)
    world.commit()
    assert world.devices["d1"].version == 8
    assert world.run() == "done"


def test_a_file_that_is_an_older_copy_asks_anew_above_what_was_sent():
    world = World(2, rings="100%")
    copy = dict(world.saved)
    world.turn()
    world.turn()
    reports = [one.report(one.seen[-1], "confirmed") for one in world.devices.values()]
    world.saved = copy
    world.restart()
    world.engine.tick(world.now_ns)
    for report in reports:
        world.engine.hear_report(report, world.now_ns)
    assert world.run() == "done"


def test_only_one_of_a_kind_fetches_all_variants():
    def measures(desired):
        all_of_it = {"25": measured("25", 5, 0.25), "50": measured("50", 15, 0.5), "100": measured("100", 40, 1.0)}
        return tuple(all_of_it[name] for name in desired.variants or all_of_it)

    devices = [FakeDevice(f"{kind}-{n}", model=kind, measures=measures) for kind in ("pi4", "pi5") for n in range(6)]
    world = World(devices, rings="4,100%", pick="largest-20ms")
    assert world.run() == "done"
    told = {one.name: one.seen[0].variants for one in devices}
    assert sorted(told.values()) == [(), (), *[("50",)] * 10]
    assert {name[:3] for name, variants in told.items() if not variants} == {"pi4", "pi5"}
    # A later rollout of the package knows already.
    again = World(devices, rings="4,100%", pick="largest-6ms", found=world.found)
    again.turn()
    assert {one.seen[-1].variants for one in devices if one.seen[-1].pick == "largest-6ms"} == {("25",)}


def test_where_the_class_s_choice_does_not_fit_the_device_fetches_all():
    devices = [FakeDevice(f"d{number}", measures=lambda _: (measured("50", 15, 0.5),)) for number in range(3)]
    world = World(devices, rings="1,100%", pick="largest-20ms")
    world.run(turns=2)
    odd = next(world.devices[row.device] for row in world.engine.rows.values() if row.ring == 1)
    odd.party = "device"
    odd.ends = lambda desired: "failed" if desired.variants else "confirmed"
    assert world.run() == "done"
    assert [one.variants for one in odd.seen] == [("50",), ()]
    assert world.stands() == {"confirmed": 3}


def test_kinds_that_never_measure_do_not_wait_for_each_other():
    world = World(6, rings="100%", pick="largest-20ms")
    assert world.run(turns=6) == "done"
    assert all(one.seen[0].variants == () for one in world.devices.values())


def test_what_came_by_another_way_is_told_by_the_status():
    world = World([FakeDevice("d0", ends=lambda _: "rolled-back")])
    world.engine.hear_status(Status(device="d0", online=True, package_sha256="7" * 64))
    world.turn()
    row = world.engine.rows["d0"]
    assert (row.before_release, row.before_sha256) == (None, "7" * 64)


def test_confirmed_with_another_package_is_a_failure():
    world = World(1)
    world.engine.tick(world.now_ns)
    world.commit()
    device = world.devices["d0"]
    world.engine.hear_report(replace(device.report(device.seen[0], "confirmed"), package_sha256="5" * 64), world.now_ns)
    assert world.stands() == {"failed": 1}


def test_plans_that_make_no_sense_are_refused():
    for wrong in (
        {"rings": "50%,10%"},
        {"rings": ""},
        {"rings": "0"},
        {"rings": "120%"},
        {"rings": "ten"},
        {"thresholds": Thresholds(failures_max="-1")},
        {"thresholds": Thresholds(failures_max="200%")},
        {"pick": "best"},
        {"soak_s": -1.0},
        {"soak_s": float("nan")},
        {"ring_timeout_s": 0.0},
        {"parallel": 0},
    ):
        with pytest.raises(CallerError):
            make_plan("net/2", NEW, "all", **wrong)


def test_ten_thousand_devices_take_little_time_a_turn():
    world = World(10_000, rings="1,10%,100%")
    began = time.process_time()
    world.engine.tick(world.now_ns)
    assert time.process_time() - began < 2.0


def test_the_plan_is_a_plain_record():
    plan = World(1).plan
    assert decode(encode(plan), Plan) == plan


@pytest.mark.parametrize("version", [2**52 + 1, 2**63, 10**400])
def test_a_version_that_no_host_counts_to_is_ignored_and_the_device_blamed(version):
    world = World(5, rings="3,100%")
    bad = next(iter(world.engine.rows))
    for name in (bad, "elsewhere"):
        hostile = replace(world.devices[bad].first(), device=name, desired_version=version)
        world.engine.hear_report(hostile, world.now_ns)
        desired = Desired(version=version, rollout="x", release="net/3", package_sha256="3" * 64)
        world.engine.hear_desired(name, desired, world.now_ns)
    world.devices[bad].version = version
    assert world.run(turns=100) == "done"
    assert world.stands() == {"confirmed": 4, "late": 1}
    assert all(row.version < 2**52 for row in world.engine.rows.values())
    assert [(one.device, one.what) for one in world.log if "understood" in one.what] == [(bad, "is not understood")]
    view = overview(world.plan, world.engine.progress, world.engine.rows.values(), world.now_ns)
    assert {one.device: one.error for one in view.devices if one.error} == {
        bad: "device: what it says is ignored: it names a version that no host counts to"
    }


def test_what_is_no_report_is_told_until_there_is_one():
    world = World(1)
    world.engine.hear_nonsense("d0", "Expected `int`", world.now_ns)
    world.engine.hear_nonsense("d0", "Expected `str`", world.now_ns)
    world.turn()
    assert world.run() == "done"
    assert world.engine.rows["d0"].nonsense == ""
    assert [one.why for one in world.log if one.what == "is not understood"] == ["Expected `int`"]
