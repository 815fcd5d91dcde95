"""Processes that end, or meet, while they keep packed weights."""

from __future__ import annotations

import platform
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from ferryman.runtime.session import open_session
from tests.support.golden import SHARED

PLACES = {"executorch": "two.pte", "tflite": "two.tflite"}
START = """
import os, signal, sys
import numpy as np
from ferryman.runtime import cache
from ferryman.runtime.session import open_session

runtime, artifact, folder, step = sys.argv[1:]

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def half(to, source, at, count, really=os.sendfile):
    really(to, source, at, count // 2)
    die()

def then_die(really):
    def both(*arguments):
        really(*arguments)
        die()
    return both

{
    "none": lambda: None,
    "before packing": lambda: setattr(cache, "memory", die),
    "after packing": lambda: setattr(cache, "_give_back", die),
    "half written": lambda: setattr(os, "sendfile", half),
    "before it is synced": lambda: setattr(os, "fsync", die),
    "before it has its name": lambda: setattr(cache.Path, "rename", die),
    "after it has its name": lambda: setattr(cache.Path, "rename", then_die(cache.Path.rename)),
    "while sweeping": lambda: setattr(cache, "_sweep", die),
    "alone in the folder": lambda: setattr(cache, "is_of", die),
}[step]()
with open_session(artifact, runtime, entry="large", cache=folder, sha256="ab" * 32) as session:
    print(session.cache, session.run([np.load(sys.argv[2].rsplit("/", 1)[0] + "/two.npz")["x"]])[0].tobytes().hex())
"""
QEMU = "qemu-x86_64-static"
STEPS = (
    "before packing",
    "after packing",
    "half written",
    "before it is synced",
    "before it has its name",
    "after it has its name",
    "while sweeping",
    "alone in the folder",
)


@pytest.fixture(params=PLACES)
def runtime(request):
    return request.param


@pytest.fixture
def answer(runtime):
    with open_session(SHARED / PLACES[runtime], runtime, entry="large") as session:
        return session.run([np.load(SHARED / "two.npz")["x"]])[0].tobytes().hex()


def begin(runtime, folder, step="none", under=()):
    command = [*under, sys.executable, "-P", "-c", START, runtime, SHARED / PLACES[runtime], folder, step]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def end(process):
    out, _ = process.communicate(timeout=60)
    return process.returncode, out.split()


@pytest.mark.parametrize("step", STEPS)
def test_a_start_that_is_killed_costs_the_next_ones_nothing_but_time(runtime, answer, step, tmp_path):
    assert end(begin(runtime, tmp_path, step)) == (-signal.SIGKILL, [])
    whole = [path for path in tmp_path.iterdir() if path.suffix == ".packed"]
    code, (use, found) = end(begin(runtime, tmp_path))
    assert (code, found) == (0, answer)
    assert use == ("warm" if whole else "built")
    assert bool(whole) == (step in STEPS[-3:])
    assert end(begin(runtime, tmp_path)) == (0, ["warm", answer])
    if not whole:
        assert [path.suffix for path in tmp_path.iterdir()] == [".packed"]


def test_several_that_start_at_once_all_answer_right(runtime, answer, tmp_path):
    for _ in range(2):
        several = [end(process) for process in [begin(runtime, tmp_path) for _ in range(4)]]
        assert [(code, out[1]) for code, out in several] == [(0, answer)] * 4
    assert {out[0] for _, out in several} == {"warm"}
    assert {path.suffix for path in tmp_path.iterdir()} == {".packed"}


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64" or not shutil.which(QEMU), reason=f"needs x86-64 and {QEMU}")
def test_another_processor_behind_the_same_cpuinfo_packs_its_own(runtime, answer, tmp_path):
    """qemu shows programs the `/proc/cpuinfo` of the machine; ExecuTorch would write into what does not suit it."""
    haswell = (QEMU, "-cpu", "Haswell")
    assert end(begin(runtime, tmp_path)) == (0, ["built", answer])
    ours = {path: path.read_bytes() for path in tmp_path.iterdir()}
    code, (use, theirs) = end(begin(runtime, tmp_path, under=haswell))
    assert (code, use) == (0, "built")
    assert end(begin(runtime, tmp_path, under=haswell)) == (0, ["warm", theirs])
    assert {path: path.read_bytes() for path in ours} == ours
    assert end(begin(runtime, tmp_path)) == (0, ["warm", answer])
