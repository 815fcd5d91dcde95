"""Whatever devices report, and however often the host is killed: what must never happen does not."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

from ferryman.devices.fleet.rollout.engine import Engine
from ferryman.devices.fleet.rollout.query import Target
from ferryman.devices.fleet.rollout.records import UNDER_WAY, Progress, Row, Thresholds, desired_of, standing
from ferryman.devices.fleet.rollout.rings import allowed
from ferryman.devices.fleet.rollout.start import Known, cut, make_plan
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import decode, encode
from ferryman.runtime.contracts.rollout import Desired
from tests.support.rollouts import NEW, OLD, FakeDevice, S, health

ENDS = st.sampled_from(["confirmed"] * 6 + ["rolled-back", "failed", "refused", "trial"])
BAD = {"rolled-back", "failed", "refused"}


class Rollouts(RuleBasedStateMachine):
    @initialize(
        devices=st.integers(1, 12),
        kinds=st.integers(1, 3),
        rings=st.sampled_from(["1,100%", "1,20%,50%,100%", "3,6,100%", "100%"]),
        failures=st.sampled_from(["0", "1", "10%", "34%"]),
        manual=st.booleans(),
        parallel=st.sampled_from([None, 1, 2]),
        pick=st.sampled_from(["first", "fastest"]),
        data=st.data(),
    )
    def begin(self, devices, kinds, rings, failures, manual, parallel, pick, data):
        self.now_ns = 2_000_000_000 * S
        plan = make_plan(
            *("net/2", NEW, "all"),
            rings=rings,
            thresholds=Thresholds(failures_max=failures),
            manual=manual,
            parallel=parallel,
            pick=pick,
            soak_s=5.0,
            ring_timeout_s=60.0,
            now_ns=self.now_ns,
        )
        self.plan = replace(plan, id="20330518T033320-0000")  # others are earlier or later
        self.devices = {}
        for number in range(devices):
            end = data.draw(ENDS)
            self.devices[f"d{number}"] = FakeDevice(
                f"d{number}",
                model=f"kind{number % kinds}",
                ends=lambda _, end=end: end,
                health=data.draw(st.sampled_from([None, health(2.0, 2.0), health(2.5, 2.0)])),
            )
        self.rows = {
            row.device: encode(row)
            for row in cut(
                self.plan,
                [Known(target=Target(name=one.name, model=one.model), online=True) for one in self.devices.values()],
            )
        }
        self.rings = {name: decode(row, Row).ring for name, row in self.rows.items()}
        self.progress = encode(Progress(rings=1 + max(self.rings.values())))
        self.broker = {}
        self.reports = {one.name: one.first() for one in self.devices.values()}
        self.versions = {}
        self.foreign = set()
        self.kill()

    @rule()
    def kill(self):
        """Nothing but what was committed is left; the broker tells what it keeps."""
        rows = [decode(row, Row) for row in self.rows.values()]
        self.engine = Engine(self.plan, decode(self.progress, Progress), rows)
        self.engine.connected(self.now_ns)
        self.heard_ns = self.now_ns
        for name, desired in self.broker.items():
            self.engine.hear_desired(name, desired, self.now_ns)
        for report in self.reports.values():
            self.engine.hear_report(report, self.now_ns)

    @rule(seconds=st.sampled_from([0.1, 1.0, 6.0, 61.0, 200.0]))
    def decide_and_die(self, seconds):
        """Killed before the commit."""
        self.now_ns += round(seconds * S)
        self.engine.tick(self.now_ns)
        self.kill()

    @rule(seconds=st.sampled_from([0.1, 1.0, 6.0, 6.0, 61.0]))
    def turn(self, seconds):
        self.now_ns += round(seconds * S)
        before, rows = self.engine.progress, dict(self.engine.rows)
        self.engine.tick(self.now_ns)
        if self.engine.progress.ring > before.ring:
            self.promoted(before.ring)
        if asked := {name for name, row in self.engine.rows.items() if row.tries > rows[name].tries}:
            stands = {name: standing(row, self.plan, self.now_ns, self.heard_ns) for name, row in rows.items()}
            busy = {name for name, found in stands.items() if found in UNDER_WAY}
            assert len(busy | asked) <= (self.plan.parallel or len(rows))
        self.commit(send=True)

    @rule(seconds=st.sampled_from([1.0, 6.0]))
    def commit_and_die(self, seconds):
        """Killed before anything is sent; the next one sends it."""
        self.now_ns += round(seconds * S)
        self.engine.tick(self.now_ns)
        self.commit(send=False)
        self.kill()
        self.commit(send=True)

    @rule(data=st.data())
    def device_works(self, data):
        device = data.draw(st.sampled_from(sorted(self.devices)))
        if device in self.broker:
            self.devices[device].told(self.broker[device])
        for report in self.devices[device].work():
            self.reports[device] = report
            self.engine.hear_report(report, self.now_ns)
        self.commit(send=True)

    @rule()
    def all_work(self):
        for device in self.devices.values():
            if device.name in self.broker:
                device.told(self.broker[device.name])
            for report in device.work():
                self.reports[device.name] = report
                self.engine.hear_report(report, self.now_ns)
        self.commit(send=True)

    @rule(verb=st.sampled_from(["pause", "resume", "approve", "approve", "retry", "abort", "roll-back"]))
    def person_asks(self, verb):
        before = self.engine.progress
        try:
            self.engine.request(verb, "me", "", self.now_ns)
        except CallerError:
            assert self.engine.progress == before
        if self.engine.progress.ring > before.ring:
            assert verb == "approve"
            self.promoted(before.ring)
        self.commit(send=True)

    @rule(data=st.data(), later=st.booleans())
    def somebody_else_asks(self, data, later):
        device = data.draw(st.sampled_from(sorted(self.devices)))
        rollout = "29990101T000000-0000" if later else "19990101T000000-0000"
        version = self.broker[device].version + 1 if device in self.broker else 5
        desired = Desired(version=version, rollout=rollout, release="net/3", package_sha256=OLD)
        self.broker[device] = desired
        self.versions.setdefault(device, {})[version] = encode(desired)
        self.engine.hear_desired(device, desired, self.now_ns)
        if later:
            self.foreign.add(device)
        self.commit(send=True)

    def commit(self, *, send):
        changes = self.engine.take()
        if changes is not None:
            self.progress = encode(changes.progress)
            self.rows |= {row.device: encode(row) for row in changes.rows}
        for row in self.engine.rows.values() if send else ():
            desired = desired_of(row, self.plan)
            if desired is not None and self.broker.get(row.device) != desired:
                self.sent(row.device, desired)

    def sent(self, device, desired):
        assert device not in self.foreign, "a device that a later rollout has was asked"
        said = self.versions.setdefault(device, {})
        if desired.version in said:
            assert said[desired.version] == encode(desired), "one version says two things"
        else:
            assert desired.version > max(said, default=0), "an older version after a newer one"
        said[desired.version] = encode(desired)
        if device not in self.broker or self.broker[device].version <= desired.version:
            self.broker[device] = desired

    def promoted(self, ring):
        """What the devices are really like, and not what the engine thinks of them."""
        members = [self.devices[name] for name, its in self.rings.items() if its == ring and name not in self.foreign]
        ours = [self.reports[one.name] for one in members if self.reports[one.name].rollout == self.plan.id]
        failed = sum(report.state in BAD for report in ours)
        assert failed <= allowed(self.plan.thresholds.failures_max, sum(its == ring for its in self.rings.values()))
        assert any(report.state == "confirmed" and report.package_sha256 == NEW for report in ours) or not members

    @invariant()
    def only_the_opened_rings_were_asked(self):
        if not hasattr(self, "progress"):
            return
        opened = decode(self.progress, Progress).ring
        for name, row in self.rows.items():
            version = decode(row, Row).version
            assert not version or self.rings[name] <= opened
        for name, desired in self.broker.items():
            assert desired.rollout != self.plan.id or self.rings[name] <= opened

    def teardown(self):
        """Left alone, it ends, and devices have what they should."""
        if not hasattr(self, "engine"):
            return
        for _ in range(400):
            self.all_work()
            self.turn(6.0)
            if self.engine.progress.phase in {"approval", "paused"}:
                self.person_asks("approve" if self.engine.progress.phase == "approval" else "resume")
            if self.engine.ended:
                break
        answered = [one for one in self.devices.values() if one.ends(None) != "trial"]
        assert self.engine.ended or len(answered) < len(self.devices)
        for device in self.devices.values():
            if self.engine.progress.phase == "halted" and device.name not in self.foreign:
                assert device.serves == OLD


TestRollouts = Rollouts.TestCase
TestRollouts.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
