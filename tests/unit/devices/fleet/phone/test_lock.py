"""Who holds a phone, and who is gone."""

from __future__ import annotations

import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.devices.fleet.phone import lock as lock_module
from ferryman.devices.fleet.phone.lock import Holder, Lock, locked
from ferryman.devices.fleet.phone.phone import Phone
from ferryman.runtime.contracts.errors import BusyError, CallerError
from tests.support.phone import WHY_NOT, AndroidSystem, DirectLink

needs_phone = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


@pytest.fixture
def system(tmp_path):
    return AndroidSystem(tmp_path)


def phone_of(system):
    return Phone("phone", DirectLink(system), system.home)


def holder(owner="t host 7 70 B", beat_s=90.0, boot="B", uptime_s=100.0):
    return Holder(owner, beat_s, boot, uptime_s)


def gone(found, here="host", running=((7, 70),), held=frozenset()):
    return found.gone(here, dict(running).get, held)


@pytest.mark.parametrize(
    ("found", "is_gone"),
    [
        (holder(), False),
        (holder(boot="C"), True),
        (holder(uptime_s=151), True),
        (holder(beat_s=101), True),
        (holder(owner="t elsewhere 8 80 B"), False),
        (holder(owner="t host 8 80 B"), True),
        (holder(owner="t host 7 71 B"), True),
        (holder(owner="nonsense"), True),
        (holder(owner=f"t host {'9' * 5000} 70 B"), True),
        (holder(owner=f"t host 7 {'9' * 5000} B"), True),
        (holder(owner="t host ² 70 B"), True),
        (holder(owner=""), True),
    ],
)
def test_who_is_gone(found, is_gone):
    assert gone(found) is is_gone


def test_this_very_process_holds_what_it_says_it_does():
    own = holder(owner=f"t host {os.getpid()} 5 B")
    assert gone(own, running=((os.getpid(), 5),))
    assert not gone(own, running=((os.getpid(), 5),), held={"t"})


@given(st.text(), st.floats(0, 1e6), st.floats(0, 1e6))
def test_whatever_stands_there_is_judged(owner, beat_s, uptime_s):
    assert gone(Holder(owner, beat_s, "B", uptime_s)) in (True, False)


@needs_phone
def test_one_at_a_time(system):
    with locked(phone_of(system)):
        other = Lock(phone_of(system))
        with pytest.raises(BusyError, match="is at work on the phone; wait until it is done"):
            other.take()
    with locked(phone_of(system)):
        pass


@needs_phone
def test_who_beats_no_more_has_lost_it_and_changes_nothing(system, monkeypatch):
    held = Lock(phone_of(system))
    held.take()
    monkeypatch.setattr(lock_module, "_here", lambda: "elsewhere")
    system.up(170)
    with locked(phone_of(system)) as taken:
        assert taken.do("echo mine").strip() == "mine"
        with pytest.raises(BusyError, match="someone else took over"):
            held.do(f'touch "{system.home}/changed"')
    assert not (system.home / "changed").exists()
    held.release()
    assert not list(system.home.glob("lock*"))


@needs_phone
def test_another_start_of_the_phone_frees_it(system, monkeypatch):
    Lock(phone_of(system)).take()
    monkeypatch.setattr(lock_module, "_here", lambda: "elsewhere")
    with pytest.raises(BusyError):
        Lock(phone_of(system)).take()
    system.boot()
    with locked(phone_of(system)):
        pass


@needs_phone
def test_a_lock_whose_maker_died_at_once_is_free_after_a_moment(system, monkeypatch):
    monkeypatch.setattr(lock_module, "_UNNAMED_S", 0.1)
    (system.home / "lock").mkdir(parents=True)
    with locked(phone_of(system)):
        pass


@needs_phone
def test_beats_go_on(system, monkeypatch):
    monkeypatch.setattr(lock_module, "BEAT_S", 0.05)
    link = DirectLink(system)
    beaten = threading.Event()
    link.on_ask = lambda _, line: beaten.set() if "lock/beat" in line and "mkdir" not in line else None
    with locked(Phone("phone", link, system.home)):
        assert beaten.wait(60)


@pytest.mark.parametrize("root", ["/", "/data", "relative/x"])
def test_a_root_that_is_no_folder_of_its_own(system, root):
    with pytest.raises(CallerError, match="must be an absolute path of a folder of ferryman's own"):
        Phone("phone", DirectLink(system), system.home.__class__(root))


def unclocked(system, *, date):
    (system.root / "proc/uptime").unlink()
    (system.root / "proc/sys/kernel/random/boot_id").unlink()
    system.says("date", date)


@needs_phone
def test_without_an_uptime_the_wall_clock_tells_that_no_beat_came(system, monkeypatch):
    unclocked(system, date="echo 1700000000")
    Lock(phone_of(system)).take()
    monkeypatch.setattr(lock_module, "_here", lambda: "elsewhere")
    with pytest.raises(BusyError, match="wait until it is done"):
        Lock(phone_of(system)).take()
    system.says("date", "echo 1700000061")
    with locked(phone_of(system)):
        pass


@needs_phone
@pytest.mark.parametrize("date", ["exit 1", f"echo {'9' * 5000}", "echo nonsense"])
def test_without_any_clock_the_folder_to_remove_is_named(system, monkeypatch, date):
    unclocked(system, date=date)
    Lock(phone_of(system)).take()
    monkeypatch.setattr(lock_module, "_here", lambda: "elsewhere")
    with pytest.raises(BusyError, match=f"no clock of it can be read.* remove {system.home}/lock"):
        Lock(phone_of(system)).take()
