"""The way from what a device runs to what it should, with a repository that is a folder of packages."""

from __future__ import annotations

import errno
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from ferryman.devices.agent.update.budget import DayBudgetError
from ferryman.devices.agent.update.config import Cancelled, LaterError
from ferryman.devices.agent.updating import Hands, Updating
from ferryman.runtime.contracts.errors import BudgetError, DeviceError, LinkError, ParityError, TrustError
from ferryman.runtime.contracts.record import decode, encode
from ferryman.runtime.contracts.release import Release
from ferryman.runtime.contracts.rollout import Desired, Health, Reported
from ferryman.runtime.contracts.slot import HealthRules, Trial
from ferryman.runtime.install import install
from ferryman.runtime.package import open_package
from ferryman.runtime.slots import SlotStore
from tests.support.packages import sha256_of, write_tiny_package

RULES = HealthRules(window_s=10.0)


def no_golden(_directory, _manifest):
    return ()


class Repository:
    """Releases by name; stands for the client of one."""

    def __init__(self, root: Path, packages: dict[str, Path]) -> None:
        self.root, self.packages = root, packages
        self.fetched: list[str] = []
        self.trouble: list[Exception] = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def check(self, name):
        path = self.packages[name]
        family, _, version = name.partition("/")
        with open_package(path) as opened:
            return Release(
                family=family,
                version=version,
                package_sha256=opened.sha256,
                package_name=opened.manifest.name,
                package_bytes=path.stat().st_size,
                published_at_ns=1,
                payloads=(),
            )

    def fetch(self, release, variants, *, update, update_max_bytes, progress):
        if self.trouble:
            raise self.trouble.pop(0)
        self.fetched.append(release.name)
        directory = self.root / "download" / release.package_sha256
        with open_package(self.packages[release.name]) as opened:
            for payload in opened.manifest.payloads:
                (directory / payload.path).parent.mkdir(parents=True, exist_ok=True)
                (directory / payload.path).write_bytes(opened.read(payload.path))
        with open_package(self.packages[release.name]) as opened:
            manifest = encode(opened.manifest)
        return SimpleNamespace(
            directory=directory, manifest=manifest, variants=(), wire_bytes=7, planned_bytes=6, notes=()
        )

    def discard(self, staged):
        pass


class Device:
    def __init__(self, tmp_path: Path) -> None:
        self.store = SlotStore(tmp_path / "root")
        (tmp_path / "root").mkdir()
        self.packages = {
            f"add/{number}": write_tiny_package(tmp_path / f"{number}.ferry", added=number) for number in (1, 2, 3)
        }
        self.repository = Repository(tmp_path / "root", self.packages)
        self.said: list[Reported] = []
        self.health = Health(seconds=0.0, starts=1, requests=0, errors=0, latency_ns=None, before_latency_ns=None)
        self.why_not = ""
        self.joules = (None, None)
        self.golden = no_golden
        self.updating = self.fresh()

    def prove(self, directory, manifest):
        return self.golden(directory, manifest)

    def fresh(self) -> Updating:
        """As a restarted agent has it."""
        self.hands = Hands(
            client=lambda _cancelled: self.repository,
            ready=lambda _desired: self.why_not,
            health=lambda: self.health,
            report=self.said.append,
            energy=lambda _state: self.joules,
            golden=lambda _pick: self.prove,
        )
        return Updating(self.store, "pi", "a board", self.hands)

    def want(self, name: str, version: int = 1, **more) -> Desired:
        desired = Desired(
            version=version,
            rollout="r",
            **{
                "package_sha256": sha256_of(self.packages[name]) if name else "",
                "health": RULES,
                "release": name,
                **more,
            },
        )
        self.updating.desire(desired)
        return desired

    def step(self) -> float | None:
        return self.updating._step()

    def served(self, seconds: float, **more) -> None:
        self.health = Health(
            **{"starts": 1, "requests": 9, "errors": 0, "latency_ns": 10, "before_latency_ns": 10, **more},
            seconds=seconds,
        )

    @property
    def states(self) -> list[str]:
        return [one.state for one in self.said]

    @property
    def active(self) -> str | None:
        slot = self.store.read_state().active
        return slot.package_name if slot else None


@pytest.fixture
def device(tmp_path):
    return Device(tmp_path)


def test_it_fetches_installs_watches_and_confirms(device):
    device.want("add/1")
    device.step()
    assert device.states == ["downloading", "installing", "trial"]
    device.served(5.0)
    assert 0 < device.step() <= 5.0
    device.served(10.0)
    device.step()
    last = device.said[-1]
    assert (last.state, last.release, last.wire_bytes, last.desired_version) == ("confirmed", "add/1", 7, 1)
    assert last.health == device.health
    assert last.health.energy_j is None
    assert device.store.read_state().trial is None
    assert device.step() is None


def test_what_a_call_takes_is_told_with_the_confirmation(device):
    device.want("add/1")
    device.step()
    device.served(10.0)
    device.joules = (0.002, 0.001)
    device.step()
    health = device.said[-1].health
    assert (health.energy_j, health.before_energy_j) == (0.002, 0.001)


def test_one_that_serves_badly_is_rolled_back_and_not_tried_again(device):
    install(device.packages["add/1"], device.store.root, golden=no_golden)
    device.want("add/2")
    device.step()
    assert device.active == "add-2"
    device.served(3.0, errors=9)
    device.step()
    assert device.said[-1].state == "rolled-back"
    assert "9 of 9 requests failed" in device.said[-1].error.message
    assert device.active == "add-1"
    device.want("add/2", 2)
    device.step()
    assert device.said[-1].state == "refused"
    assert "served badly (9 of 9 requests failed" in device.said[-1].error.message
    assert device.repository.fetched == ["add/2"]
    device.want("add/2", 3, force=True)
    device.step()
    assert device.active == "add-2"


def test_one_that_was_rolled_back_by_hand_is_not_accused(device):
    for name in ("add/1", "add/2"):
        install(device.packages[name], device.store.root, golden=no_golden)
    device.store.rollback()
    device.want("add/2")
    device.step()
    said = device.said[-1]
    assert (said.state, device.repository.fetched) == ("refused", [])
    assert "was rolled back by hand" in said.error.message
    assert "--force" in said.error.message
    assert "badly" not in said.error.message


def test_a_crash_loop_ends_the_trial_before_anything_is_served(device):
    install(device.packages["add/1"], device.store.root, golden=no_golden)
    device.want("add/2")
    device.step()
    for _ in range(RULES.starts_max - 1):
        device.updating = device.fresh()
        device.updating.note_start()
        assert device.active == "add-2"
    device.updating = device.fresh()
    device.updating.note_start()
    assert device.active == "add-1"
    assert device.said[-1].state == "rolled-back"
    assert "crash loop" in device.said[-1].error.message
    assert device.step() is None


def test_an_older_wish_is_ignored_and_a_wish_survives_a_restart(device):
    device.want("add/2", 5)
    device.want("add/1", 4)
    device.updating = device.fresh()
    device.step()
    assert device.active == "add-2"


@pytest.mark.parametrize(
    ("trouble", "state", "again"),
    [
        (LinkError("no link"), "downloading", True),
        (DayBudgetError("tomorrow"), "waiting", True),
        (BudgetError("too much"), "refused", False),
        (TrustError("forged"), "failed", False),
    ],
)
def test_what_goes_wrong_is_said_and_the_old_one_serves(device, trouble, state, again):
    install(device.packages["add/1"], device.store.root, golden=no_golden)
    device.want("add/2")
    device.repository.trouble.append(trouble)
    wait_s = device.step()
    assert device.said[-1].state == state
    assert device.said[-1].error.party == trouble.party
    assert device.active == "add-1"
    if again:
        assert wait_s > 0
        device.step()
        assert device.active == "add-2"
    else:
        assert device.step() is None


def test_a_server_that_asks_to_come_back_later_is_left_alone_so_long(device):
    device.want("add/1")
    device.repository.trouble += [LaterError("answers 429", 1800.0), LaterError("answers 429", 0.0)]
    assert device.step() == 1800.0
    assert device.said[-1].state == "downloading"
    assert 0 < device.step() <= 20, "the usual pause is the least"
    device.step()
    assert device.active == "add-1"


def test_a_wish_that_is_taken_back_is_forgotten(device):
    device.want("add/2")
    device.updating.forget()
    assert device.step() is None
    device.updating = device.fresh()
    assert device.step() is None
    assert device.active is None
    device.want("add/2")
    device.step()
    assert device.active == "add-2"


def test_a_wish_that_a_read_only_disk_keeps_is_forgotten_until_the_next_start(device, monkeypatch, caplog):
    def refuse(_path, **_named):
        raise OSError(errno.EROFS, "Read-only file system")

    device.want("add/2")
    monkeypatch.setattr(Path, "unlink", refuse)
    device.updating.forget()
    assert device.updating._changed.is_set()
    assert "a restart will want it again" in caplog.text
    monkeypatch.undo()
    assert device.step() is None


def test_a_wish_far_ahead_locks_nobody_out(device):
    device.want("add/2", 2**53)
    assert device.step() is None
    device.want("add/1", 7)
    device.step()
    assert device.active == "add-1"


def test_a_busy_store_is_waited_for(device):
    device.want("add/2")
    with device.store.lock():
        assert device.step() > 0
        assert (device.said[-1].state, device.said[-1].error.party) == ("waiting", "busy")
    device.step()
    assert device.active == "add-2"


def test_an_install_by_hand_ends_a_trial_for_good(device):
    install(device.packages["add/1"], device.store.root, golden=no_golden)
    device.want("add/2")
    device.step()
    install(device.packages["add/3"], device.store.root, golden=no_golden)
    device.step()
    assert device.said[-1].state == "failed"
    assert "ended by hand: add-3 was installed" in device.said[-1].error.message
    assert device.step() is None
    assert device.active == "add-3"
    assert device.said[-1].package_sha256 == sha256_of(device.packages["add/3"])


def test_what_is_installed_by_hand_later_is_reported(device):
    device.want("add/1", health=HealthRules(window_s=0))
    device.step()
    device.served(1.0)
    device.step()
    assert device.said[-1].state == "confirmed"
    install(device.packages["add/3"], device.store.root, golden=no_golden)
    device.step()
    assert device.said[-1].package_sha256 == sha256_of(device.packages["add/3"])
    assert device.said[-1].release is None


def test_the_way_back_does_not_call_a_package_bad(device):
    install(device.packages["add/1"], device.store.root, golden=no_golden)
    device.want("add/2")
    device.step()
    device.want("add/1", 2, previous=True)
    device.step()
    device.want("add/2", 3)
    device.step()
    assert device.active == "add-2"


@pytest.mark.parametrize(
    "absurd",
    [
        {"version": 2**70},
        {"version": -1},
        {"rollout": "zz" * 600_000},
        {"release": "x" * 5000},
        {"health": {"starts_max": -5}},
        {"health": {"starts_max": 10**9}},
        {"health": {"window_s": -1}},
        {"health": {"errors_max": 7}},
        {"update_max_bytes": 2**70},
        {"window": {"begin_minute": -1, "end_minute": 5000}},
    ],
)
def test_absurd_wishes_are_none(absurd):
    wish = {"version": 1, "rollout": "r", "release": "add/1", "package_sha256": "0" * 64, **absurd}
    with pytest.raises(ValueError, match=r"\$\."):
        decode(json.dumps(wish).encode(), Desired)


def test_a_cancelled_one_says_nothing_and_goes_on(device):
    device.want("add/2")
    device.repository.trouble.append(Cancelled("stop"))
    assert device.step() == 0.0
    device.step()
    assert device.active == "add-2"


def test_golden_vectors_that_fail_leave_the_old_one(device):
    install(device.packages["add/1"], device.store.root, golden=no_golden)

    def golden(_directory, _manifest):
        raise ParityError("wrong")

    device.golden = golden
    device.want("add/2")
    device.step()
    assert (device.said[-1].state, device.said[-1].error.party) == ("failed", "artifact")
    assert device.active == "add-1"


def test_the_way_back_needs_no_network_and_no_trial(device):
    install(device.packages["add/1"], device.store.root, golden=no_golden)
    device.want("add/2")
    device.step()
    desired = device.want("add/1", 2, previous=True)
    device.step()
    assert device.active == "add-1"
    assert device.said[-1].state == "confirmed"
    assert device.said[-1].desired_version == desired.version
    assert device.repository.fetched == ["add/2"]


def test_the_way_back_is_to_what_it_was_with_its_variants_and_pick(device):
    install(device.packages["add/1"], device.store.root, golden=no_golden)
    state = device.store.read_state()
    had = replace(state.active, variants=("fp32-tflite",), pick="smallest-20ms", variant="fp32-tflite")
    device.store.write_state(replace(state, active=had))
    device.want("add/1", previous=True, release="")  # it never took the other one
    device.step()
    assert device.store.read_state().active == had
    device.want("add/2", version=2)
    device.step()
    device.served(11.0)
    device.step()
    device.want("add/1", version=3, previous=True, release="")
    device.step()
    assert device.states[-1] == "confirmed"
    assert device.store.read_state().active == had


def test_the_way_back_is_fetched_where_it_is_gone(device):
    for name in ("add/2", "add/3"):
        install(device.packages[name], device.store.root, golden=no_golden)
    device.want("add/1", previous=True)
    device.step()
    assert device.active == "add-1"
    assert device.store.read_state().trial is None


def test_a_release_of_another_package_is_not_trusted(device):
    device.updating.desire(
        Desired(version=1, rollout="r", release="add/2", package_sha256=sha256_of(device.packages["add/1"]))
    )
    device.step()
    assert (device.said[-1].state, device.said[-1].error.party) == ("failed", "trust")


def test_it_waits_until_the_device_is_ready(device):
    device.want("add/1")
    device.why_not = "the battery is low"
    device.updating._changed.set()
    device.step()
    assert device.said[-1].state == "waiting"
    assert device.said[-1].error.message == "the battery is low"
    device.why_not = ""
    device.step()
    assert device.active == "add-1"


def test_what_serves_already_is_confirmed(device):
    install(device.packages["add/1"], device.store.root, golden=no_golden)
    device.want("add/1")
    device.step()
    assert device.said[-1].state == "confirmed"
    assert device.repository.fetched == []


def test_what_serves_is_confirmed_though_the_disk_takes_no_name_for_it(device, monkeypatch, caplog):
    install(device.packages["add/1"], device.store.root, golden=no_golden)

    def full(*_: object) -> None:
        raise DeviceError("the disk is full")

    monkeypatch.setattr(SlotStore, "write_state", full)
    device.want("add/1")
    device.step()
    assert (device.said[-1].state, device.said[-1].error) == ("confirmed", None)
    assert "the disk is full" in caplog.text


def test_what_was_pushed_takes_the_name_of_its_release(device):
    install(device.packages["add/1"], device.store.root, golden=no_golden)
    assert device.store.read_state().active.release is None
    before = device.store.read_state()
    device.want("add/1")
    device.step()
    assert (device.said[-1].state, device.said[-1].release) == ("confirmed", "add/1")
    assert device.repository.fetched == []
    assert device.store.read_state() == replace(before, active=replace(before.active, release="add/1"))
    device.want("", 2, package_sha256=sha256_of(device.packages["add/1"]), previous=True)
    device.step()
    assert device.said[-1].release == "add/1"


def test_the_thread_notices_wishes_and_ends(device):
    stop = threading.Event()
    thread = threading.Thread(target=device.updating.run, args=(stop,))
    thread.start()
    device.served(10.0)
    device.want("add/1")
    deadline = time.monotonic() + 60
    while "confirmed" not in device.states:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    stop.set()
    device.updating.wake()
    thread.join(60)
    assert not thread.is_alive()


def test_a_trial_is_of_the_rules_asked_for(device):
    device.want("add/1")
    device.step()
    trial = device.store.read_state().trial
    assert isinstance(trial, Trial)
    assert (trial.rules, trial.rollout, trial.starts) == (RULES, "r", 1)
