from __future__ import annotations

from ferryman.devices.fleet.rollout.words import by_number, counted, shorten


def test_words_for_people():
    assert [counted(one, "device") for one in (0, 1, 1000)] == ["0 devices", "1 device", "1,000 devices"]
    assert shorten("a" * 100) == "a" * 100
    assert shorten("a" * 101) == "a" * 97 + "..."
    names = ["b/1", "a/10", "a/2", "a/1.10", "a/1.9", "a/1.9-rc", "7/x", "a/"]
    assert sorted(names, key=by_number) == ["7/x", "a/", "a/1.9", "a/1.9-rc", "a/1.10", "a/2", "a/10", "b/1"]
