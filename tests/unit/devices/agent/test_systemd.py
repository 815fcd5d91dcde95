from __future__ import annotations

import os
import threading
import time
from types import SimpleNamespace

import pytest

from ferryman.devices.agent import systemd
from ferryman.devices.agent.systemd import Service
from ferryman.runtime import alive
from ferryman.runtime.alive import beat, watched
from tests.support.notified import NotifySocket

EXTEND = "EXTEND_TIMEOUT_USEC=30000000"


@pytest.fixture(autouse=True)
def apart(monkeypatch):
    monkeypatch.setattr(alive, "_pulses", [])
    monkeypatch.setattr(systemd, "EVERY_S", 0.05)


@pytest.fixture(params=[False, True], ids=["path", "abstract"])
def notify(tmp_path, request):
    with NotifySocket(tmp_path, abstract=request.param) as made:
        yield made


def pats(notify):
    time.sleep(0.2)
    return notify.read().count("WATCHDOG=1")


def test_a_life_as_systemd_hears_it(notify):
    environ = {**notify.environment(0.2), "WATCHDOG_PID": str(os.getpid()), "HOME": "/"}
    with Service(environ) as service:
        assert environ == {"HOME": "/"}, "a worker process must not speak for the agent"
        assert notify.wait_for(lambda f: f == EXTEND), "a start that goes on is given more time"
        service.ready("serves\n nothing")
        assert notify.wait_for(lambda f: f.startswith("STATUS=")) == "STATUS=serves nothing"
        assert notify.heard.count("READY=1") == 1
        for _ in range(2):  # the first may have been under way
            notify.wait_for(lambda f: f == "WATCHDOG=1")
        notify.read()
        notify.wait_for(lambda f: f == "WATCHDOG=1")
        served = len(notify.heard)
        notify.wait_for(lambda f: f == "WATCHDOG=1")
        assert EXTEND not in notify.heard[served:]
        service.stopping()
        assert notify.wait_for(lambda f: f == EXTEND), "so is a stop"
        assert "STOPPING=1" in notify.heard
    service._thread.join(60)
    notify.read()
    assert pats(notify) == 0, "it has ended"


def test_a_status_is_told_when_it_changed_and_not_too_often(notify, monkeypatch):
    service = Service(notify.environment())
    service.ready("a")
    monkeypatch.setattr(systemd, "EVERY_S", 60)
    service.status("b")
    service.status("c")
    assert notify.read() == ["READY=1", "STATUS=a"]
    monkeypatch.setattr(systemd, "EVERY_S", 0)
    service.status("c")
    service.status("c")
    assert notify.read() == ["STATUS=c"]


def test_without_a_watchdog_there_are_no_pats(notify):
    for more in ({}, {"WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}):
        with Service({**notify.environment(), **more}) as service:
            service.ready("")
            assert pats(notify) == 0


def test_a_silent_thread_ends_the_pats_and_they_go_on_with_it(notify, monkeypatch, caplog):
    begun, go_on, ended, ahead = threading.Event(), threading.Event(), threading.Event(), [0.0]
    monkeypatch.setattr(alive, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + ahead[0]))

    def hang():
        with watched("the desk", 60):
            begun.set()
            go_on.wait(60)
            beat()
            ended.wait(60)

    thread = threading.Thread(target=hang)
    with Service(notify.environment(0.15)) as service:
        service.ready("")
        thread.start()
        assert begun.wait(60)
        assert notify.wait_for(lambda f: f == "WATCHDOG=1")
        ahead[0] = 61
        assert "the desk has not gone on for" in notify.wait_for(lambda f: f.startswith("STATUS=hangs"))
        assert pats(notify) == 0
        go_on.set()
        assert notify.wait_for(lambda f: f == "WATCHDOG=1")
        ended.set()
        thread.join()
    assert [r.levelname for r in caplog.records] == ["CRITICAL", "WARNING"], "said once each"


def test_a_thread_that_died_ends_the_pats(notify):
    def die():
        with watched("the link", None):
            raise RuntimeError("gone")

    with Service(notify.environment(0.15)):
        with pytest.raises(RuntimeError):
            die()
        assert notify.wait_for(lambda f: f.startswith("STATUS=")) == "STATUS=hangs: the link has died"
        assert pats(notify) == 0


def test_a_main_thread_that_hangs_while_starting_is_given_no_more_time(notify, monkeypatch):
    monkeypatch.setattr(systemd, "STUCK_S", 0.2)
    with Service(notify.environment()):
        notify.wait_for(lambda f: f.startswith("STATUS=hangs: the main thread"))
        time.sleep(0.2)
        assert EXTEND not in notify.read()


def test_why_it_ended_is_its_last_status(notify):
    with pytest.raises(ValueError, match="no such"), Service(notify.environment()):
        raise ValueError("no such\nbroker")
    assert notify.read() == ["STATUS=no such broker"]


def test_without_systemd_nothing_is_told_and_nothing_runs(tmp_path):
    threads = set(threading.enumerate())  # others' may end meanwhile
    with Service({}) as service:
        service.ready("a")
        service.status("b")
        service.stopping()
        assert set(threading.enumerate()) <= threads
    with Service({"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "100000"}) as service:
        service.ready("nobody listens, which is no reason to end")
        time.sleep(0.1)
