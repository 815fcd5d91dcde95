"""Files are written whole, or what was there stays."""

from __future__ import annotations

import os
import stat
import threading

import pytest

from ferryman.profiler.files import write_whole
from ferryman.runtime.contracts.errors import CallerError
from tests.support.disk import small_disk


def test_a_file_takes_the_place_of_the_old_one(tmp_path):
    target = tmp_path / "page.html"
    write_whole(target, "old\r\n")
    write_whole(target, "new µ\n")
    assert target.read_bytes() == "new µ\n".encode()
    assert list(tmp_path.iterdir()) == [target]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~umask


def test_what_a_link_names_is_replaced_and_the_link_stays(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("old")
    link.symlink_to(real)
    write_whole(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"


def test_a_pipe_is_written_to(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
    reader.start()
    write_whole(pipe, "text")
    reader.join(60)
    assert found == ["text"]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    with small_disk(tmp_path / "small") as folder:
        target = folder / "page.html"
        write_whole(target, "old")
        with pytest.raises(CallerError, match=r"cannot write .*page\.html: No space left on device"):
            write_whole(target, "x" * (64 << 20))
        assert target.read_text() == "old"
        assert list(folder.iterdir()) == [target]
