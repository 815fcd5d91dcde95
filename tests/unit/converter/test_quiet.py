from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from ferryman.converter.quiet import quiet

CHATTER = """
import logging, os, sys
logging.basicConfig(level=logging.DEBUG, format="log %(message)s")
from ferryman.converter.quiet import quiet
print("before")
try:
    with quiet():
        print("python")
        os.write(1, b"native out\\n")
        os.write(2, b"native err\\n")
        os.system("echo child")
        raise ValueError
except ValueError:
    pass
print("after")
os.write(2, b"err after\\n")
"""


FDS = Path("/proc/self/fd")


def descriptors():
    return [(FDS / name).readlink() for name in ("1", "2")]


def count_open():
    return sum(1 for _ in FDS.iterdir())


def test_chatter_of_every_kind_goes_to_the_log_and_both_streams_come_back_after_an_error():
    done = subprocess.run([sys.executable, "-c", CHATTER], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["before", "after"]
    logged = done.stderr.splitlines()
    assert sorted(logged[:-1]) == ["log child", "log native err", "log native out", "log python"]
    assert logged[-1] == "err after"


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_descriptors_are_restored_and_none_is_left_open(error):
    before, count = descriptors(), count_open()
    try:
        with quiet():
            assert descriptors() != before
            if error:
                raise error
    except (ValueError, KeyboardInterrupt):
        pass
    assert descriptors() == before
    assert count_open() == count


def test_quiet_nests_and_leaves_warnings_as_they_were(caplog):
    filters = list(warnings.filters)
    with caplog.at_level(logging.DEBUG, "ferryman.toolchain"), quiet(), quiet():
        warnings.warn("chatter", stacklevel=1)
        os.write(1, b"inner\n")
    assert "inner" in caplog.text
    assert list(warnings.filters) == filters


CLOSED = """
import os, sys
from ferryman.converter.quiet import quiet
with quiet():
    print("chatter")
    os.write(1, b"chatter")
    os.write(2, b"chatter")
    os.system("echo chatter")
with open(sys.argv[1], "w") as file:  # must not be where chatter goes
    os.write(1, b"chatter")
    os.write(2, b"chatter")
    file.write("clean")
"""


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_trouble_and_nothing_takes_their_place(tmp_path, closed):
    path = tmp_path / "file"
    command = ["sh", "-c", f'"$@" {closed}', "sh", sys.executable, "-c", CLOSED, str(path)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert path.read_text() == "clean"


def test_threads_take_turns_and_both_streams_come_back():
    before, at_once, most = descriptors(), [], []

    def chatter():
        for _ in range(5):
            with quiet():
                at_once.append(1)
                most.append(len(at_once))
                time.sleep(0.002)
                at_once.pop()

    threads = [threading.Thread(target=chatter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert descriptors() == before
    assert max(most) == 1
