"""mark_good.sh and rollback.sh with the real ferryman and a real store; as another user: tests/firmware/slots.bats."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ferryman.runtime.install import install
from ferryman.runtime.slots import SlotStore
from tests.support.interpreters import ROOT
from tests.support.packages import sha256_of, write_tiny_package
from tests.unit.runtime.test_trial import accept, put_on_trial

pytestmark = pytest.mark.slow  # python starts for each call


@pytest.fixture
def packages(tmp_path):
    return [write_tiny_package(tmp_path / f"{n}.ferry", added=float(n)) for n in (1, 2)]


@pytest.fixture
def store(tmp_path, packages):
    """add-2 is on trial, add-1 was confirmed."""
    store = SlotStore(tmp_path / "root")
    install(packages[0], store.root, golden=accept)
    put_on_trial(store, packages[1])
    return store


@pytest.fixture
def call(store, tmp_path):
    command = tmp_path / "ferryman"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m ferryman.cli "$@"\n')
    command.chmod(0o755)

    def call(script: str, *words: str | Path):
        line = [ROOT / "firmware_scripts" / script, "--root", store.root, "--command", command, *words]
        return subprocess.run(line, capture_output=True, text=True, check=False, cwd=tmp_path)

    return call


def files(store):
    return {path: path.stat().st_mtime_ns for path in store.root.rglob("*")}


def test_a_trial_is_marked_good_and_once_more_changes_nothing(store, call):
    done = call("mark_good.sh")
    assert (done.returncode, done.stdout) == (0, "add-2 in slot b serves for good\n"), done.stderr
    assert store.read_state().trial is None
    before = files(store)
    done = call("mark_good.sh")
    assert (done.returncode, done.stdout) == (0, "no package is on trial; nothing was changed\n")
    assert files(store) == before


def test_the_package_before_serves_again_and_there_is_no_way_further_back(store, call, packages):
    done = call("rollback.sh")
    assert (done.returncode, done.stdout) == (0, "add-1 is active again in slot a\n"), done.stderr
    state = store.read_state()
    assert [one.package_sha256 for one in state.bad] == [sha256_of(packages[1])]
    done = call("rollback.sh")
    assert done.returncode == 1
    assert "no previous slot to roll back to" in done.stderr
    assert store.read_state() == state


def test_a_damaged_way_back_is_not_taken(store, call):
    manifest = store.directory("a") / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-1])
    before = files(store)
    done = call("rollback.sh")
    assert done.returncode == 1
    assert "device: " in done.stderr
    assert store.read_state().active.package_name == "add-2"
    assert {path for path in before if path.name != "lock"} == {path for path in files(store) if path.name != "lock"}


@pytest.mark.parametrize("script", ["mark_good.sh", "rollback.sh"])
def test_a_dry_run_changes_nothing(store, call, script):
    before = files(store)
    done = call(script, "--dry-run")
    assert done.returncode == 0
    assert done.stdout.startswith("would run: ")
    assert files(store) == before
