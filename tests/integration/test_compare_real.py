"""Slow-downs put into real measuring processes are found and named."""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
import numpy as np
import pytest

from ferryman.devices.fleet.compare import compare, compare_measurements
from ferryman.devices.fleet.inventory import LocalDevice
from ferryman.profiler.causes import what_disturbed
from ferryman.profiler.differences import busy_share
from ferryman.profiler.runner import profile_package
from ferryman.runtime.contracts.measurement import ProfileSpec
from ferryman.runtime.contracts.record import Unavailable
from tests.support.packages import write_tiny_package
from tests.support.undisturbed import undisturbed

# Python runs this first in every measuring process: a run takes some work more, and of one package a nap as well.
SITE = """
import time
from pathlib import Path
from ferryman.runtime import session

plain = session.open_session

def open_session(artifact, *arguments, **options):
    opened = plain(artifact, *arguments, **options)
    run, nap_s = opened.run, {nap_s} if {mark!r} in Path(artifact).read_bytes() else 0
    def worked(inputs):
        for _ in range({loops}):
            pass
        if nap_s:
            time.sleep(nap_s)
        return run(inputs)
    opened.run = worked
    return opened

session.open_session = open_session
"""
MARK = np.full(4, 2.0, np.float32).tobytes()
QUIET = 0.3
SPEC = ProfileSpec(interpreters=("ai-edge-litert",), warmup_runs=3, runs=30, energy=False)


@pytest.fixture
def slowed(tmp_path, monkeypatch):
    """Let each run take so many loops of Python, and that of the package that adds 2 so many seconds more."""

    def put(loops: int, nap_s: float = 0.0) -> None:
        (tmp_path / "site").mkdir()
        (tmp_path / "site/sitecustomize.py").write_text(SITE.format(loops=loops, nap_s=nap_s, mark=MARK))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))

    return put


@pytest.fixture
def one_core():
    """This process, and those it starts, on one core; returns which."""
    before = os.sched_getaffinity(0)
    core = min(before)
    os.sched_setaffinity(0, {core})
    yield core
    os.sched_setaffinity(0, before)


def packages(tmp_path):
    return [write_tiny_package(tmp_path / f"{added}.ferry", added=float(added)) for added in (1, 2)]


def test_a_nap_in_the_session_is_found_and_laid_to_the_artifact(tmp_path, slowed):
    slowed(loops=20_000, nap_s=0.003)

    def attempt():
        (found,) = compare(packages(tmp_path), LocalDevice(), SPEC, rounds=6)
        assert found.verdict == "slower"
        assert found.ratios[0].low > 1.5
        assert [cause.name for cause in found.causes] == ["artifact"]
        assert len(found.baseline.starts) == len(found.other.starts) == 6

    undisturbed(attempt)


@pytest.mark.slow
def test_a_package_beside_itself_is_not_slower(tmp_path, slowed):
    slowed(loops=20_000)
    package = packages(tmp_path)[0]

    def attempt():
        (found,) = compare([package, package], LocalDevice(), SPEC, rounds=10, margin=0.1)
        assert found.verdict not in {"slower", "faster"}
        assert [difference.name for difference in found.differences if difference.bars] == []

    undisturbed(attempt, attempts=3)


def test_a_cpu_hog_on_the_same_core_is_found_and_named(tmp_path, slowed, one_core):
    slowed(loops=300_000)  # some milliseconds: beside a hog, shorter runs are either undisturbed or put off for long
    package, spec = packages(tmp_path)[0], msgspec.structs.replace(SPEC, starts=5)

    def attempt():
        (quiet,) = profile_package(package, spec)
        taken = busy_share(quiet)
        if isinstance(taken, Unavailable) or taken > QUIET:
            pytest.skip(f"others take {taken} of the processors already: a hog more hardly shows")
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as hog:
            try:
                assert os.sched_getaffinity(hog.pid) == {one_core}
                (crowded,) = profile_package(package, spec)
            finally:
                hog.kill()
        (found,) = compare_measurements([[quiet], [crowded]])
        assert found.verdict == "slower"
        assert "busy" in [cause.name for cause in found.causes]
        assert "busy" in [cause.name for cause in what_disturbed(crowded)]

    undisturbed(attempt)
