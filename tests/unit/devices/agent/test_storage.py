from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest

from ferryman.devices.agent import storage
from ferryman.devices.agent.spending import TelemetryConfig
from ferryman.devices.agent.storage import only_one, open_outbox, why_not_writable
from ferryman.runtime.contracts.errors import DeviceError
from tests.support.disk import disk_free, small_disk


def refusing(monkeypatch, number):
    """Every file that is opened to be written is refused."""
    whole, written = os.open, os.O_WRONLY | os.O_RDWR

    def refuse(path, flags, *rest, **named):
        if flags & written:
            raise OSError(number, os.strerror(number), str(path))
        return whole(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", refuse)


def test_a_folder_that_takes_files_is_left_as_it_was(tmp_path):
    assert why_not_writable(tmp_path) == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "word"),
    [(errno.EROFS, "read-only"), (errno.ENOSPC, "full"), (errno.EIO, "failing"), (errno.EACCES, "Permission denied")],
)
def test_why_one_takes_none_is_said_in_a_word(tmp_path, monkeypatch, number, word):
    refusing(monkeypatch, number)
    assert why_not_writable(tmp_path) == word


def test_a_disk_that_is_full_for_real(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        (disk / "other").write_bytes(bytes(disk_free(disk)))
        assert why_not_writable(disk) == "full"
        assert [one.name for one in disk.iterdir()] == ["other"]


def test_a_root_that_takes_no_file_is_locked_itself(tmp_path, monkeypatch):
    refusing(monkeypatch, errno.EROFS)
    with only_one(tmp_path), pytest.raises(DeviceError, match="another agent serves"), only_one(tmp_path):
        pass
    with only_one(tmp_path):
        pass


def test_a_lock_that_is_there_is_held_on_a_disk_that_became_read_only(tmp_path, monkeypatch):
    with only_one(tmp_path):
        refusing(monkeypatch, errno.EROFS)
        with pytest.raises(DeviceError, match="another agent serves"), only_one(tmp_path):
            pass


def test_a_root_of_another_user_is_a_mistake_and_said_so(tmp_path, monkeypatch):
    refusing(monkeypatch, errno.EACCES)
    with pytest.raises(DeviceError, match="run the agent as the user who owns"), only_one(tmp_path):
        pass


def test_folders_that_cannot_be_made_are_named_with_their_option(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DeviceError, match=r"cannot make the folder .*file/root: .* another --root"):
        open_outbox(tmp_path / "file" / "root", TelemetryConfig())
    with pytest.raises(DeviceError, match="another --outbox"):
        open_outbox(tmp_path, TelemetryConfig(outbox=tmp_path / "file" / "box"))


def test_an_outbox_elsewhere_leaves_the_root_alone(tmp_path):
    outbox = open_outbox(tmp_path / "root", TelemetryConfig(outbox=tmp_path / "box"))
    assert outbox.path.parent == tmp_path / "box"
    assert list((tmp_path / "root").iterdir()) == []
    outbox.close()


def test_where_the_disk_refuses_the_ways_out_are_said(tmp_path, monkeypatch, caplog):
    whole = Path.open

    def refuse(path, *arguments, **named):
        if path.parent == tmp_path:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return whole(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(storage, "why_not_writable", lambda _: "read-only")
    outbox = open_outbox(tmp_path, TelemetryConfig())
    assert outbox.id == ""
    (said,) = [r.getMessage() for r in caplog.records if r.name == storage.__name__ and r.levelno == logging.ERROR]
    assert f"{tmp_path} cannot be written (read-only)" in said
    assert "make it writable, or name a folder that is with --outbox" in said
    monkeypatch.undo()
    assert outbox.next_birth() == 1, "it is opened as soon as it can be"
    outbox.close()
