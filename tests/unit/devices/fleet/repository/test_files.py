import os
import threading

import pytest

from ferryman.devices.fleet.repository import files
from ferryman.devices.fleet.repository.files import WORK, locked
from ferryman.runtime.contracts.errors import CallerError


def test_who_does_not_get_the_lock_leaves_the_holders_work_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_WAIT_S", 0.1)
    with locked(tmp_path) as work:
        (work / "half.pack").write_bytes(b"precious")
        with pytest.raises(CallerError, match=f"process {os.getpid()} is changing"), locked(tmp_path):
            pytest.fail("two have it")
        assert (work / "half.pack").read_bytes() == b"precious"
    assert not (tmp_path / WORK).exists()


def test_a_short_change_is_waited_for(tmp_path):
    held, order = threading.Event(), []

    def refresh():
        with locked(tmp_path):
            held.set()
            threading.Event().wait(0.2)
            order.append("first")

    thread = threading.Thread(target=refresh)
    thread.start()
    held.wait()
    with locked(tmp_path) as work:
        order.append("second")
        assert list(work.iterdir()) == []
    thread.join()
    assert order == ["first", "second"]


def test_what_a_killed_publisher_left_is_emptied_by_the_next(tmp_path):
    (tmp_path / WORK).mkdir()
    (tmp_path / WORK / "half.pack").write_bytes(b"left")
    with locked(tmp_path) as work:
        assert list(work.iterdir()) == []
