from __future__ import annotations

import threading
import time

import pytest

from ferryman.runtime import alive
from ferryman.runtime.alive import beat, silent, watched


@pytest.fixture
def now(monkeypatch):
    """The monotonic clock, in a list."""
    clock = [100.0]
    monkeypatch.setattr(alive, "_pulses", [])
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    return clock


def test_a_thread_that_says_nothing_within_its_bound_is_silent_until_it_does(now):
    with watched("the desk", 5):
        now[0] += 5
        assert silent() == []
        now[0] += 1
        assert silent() == ["the desk has not gone on for 6 s (bound 5 s)"]
        beat()
        assert silent() == []
        now[0] += 9
    assert silent() == [], "it has ended"


def test_each_thread_shows_for_itself(now):
    ready, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def other():
        with watched("other", 5):
            ready.set()
            go_on.wait(60)
            beat()
            done.set()
            go_on.clear()
            go_on.wait(60)

    thread = threading.Thread(target=other)
    with watched("this", 5):
        thread.start()
        assert ready.wait(60)
        now[0] += 6
        beat()
        assert [one.partition(" has")[0] for one in silent()] == ["other"]
        go_on.set()
        assert done.wait(60)
        assert silent() == []
        go_on.set()
        thread.join(60)


def test_one_without_a_bound_is_missed_only_when_it_died(now):
    def die():
        with watched("the link", None):
            now[0] += 1e6
            assert silent() == []
            raise RuntimeError("no more threads")

    with pytest.raises(RuntimeError):
        die()
    assert silent() == ["the link has died"]


def test_a_beat_in_a_thread_that_nobody_watches_is_nothing(now):
    beat()
    assert silent() == []
    with watched("outer", 5):
        with watched("inner", 5):
            pass
        now[0] += 6
        beat()
        assert silent() == [], "the outer block goes on with its own"
