"""A Raspberry Pi in a box: enrolled, pushed to, measured, updated over the air, cut off and back, without a Pi.

The device is an arm64 Debian under qemu, with the cross-built wheel; it, the broker with the repository, and the host
have a network of their own each. This shows that everything computes and arrives there as it should. Times are those of
qemu and say nothing about a Pi, and neither kernel, drivers, sensors nor the order of memory accesses are a Pi's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ferryman.runtime.compare import SQNR_CAP_DB, compare, worst
from ferryman.runtime.package import open_package
from ferryman.runtime.slots import SlotStore
from tests.support import netns, pi_device, pi_models
from tests.support.interpreters import ROOT
from tests.support.mosquitto import BINARY
from tests.support.pi import BOARD_OF
from tests.support.pi_device import COMMAND, PYTHON, packed_device
from tests.support.pi_scene import DEVICE, STATE, Scene, emulated_pi

WHY_NOT = pi_device.why_not() or netns.why_not() or ("" if BINARY else "mosquitto is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500), pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]
CPUS = tuple(BOARD_OF)
HWCAP = "import ctypes, platform; print(platform.machine(), hex(ctypes.CDLL(None).getauxval(16)))"
PI_HWCAP = 0x8FB
"""No atomics, no dot products, no half floats: what qemu's own choice of processor has, and a Pi 3 or 4 has not."""
LIBRARY = pi_device.VENV / "lib/python3.11/site-packages/ferryman/runtime/native/lib"
WAITING = """
import sqlite3, sys
file, since_ns = sys.argv[1:]
count = "select count(*) from records where kind = 'sample' and time_ns > ?"
with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as opened:
    print(*opened.execute(count, (int(since_ns),)).fetchone())
"""
"""There, for SQLite follows links, and those of /proc lead elsewhere here."""
WHILE_CUT = 5
"""Samples that the device takes meanwhile."""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return pi_models.write_packages(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    packed = packed_device()
    print(f"device root {packed.name}: {packed.stat().st_size / 1e6:.0f} MB", file=sys.stderr)
    with emulated_pi(tmp_path_factory.mktemp("pi"), "cortex-a72") as scene:
        yield scene


@pytest.fixture(scope="module")
def enrolled(scene: Scene) -> Scene:
    """Over SSH, into the arm64 sshd; in the end the device connects to the broker as a proof."""
    said = scene.ferryman("enroll", DEVICE, "--ca", scene.folder / "ca", "--broker", scene.broker_of_devices)
    assert f"{DEVICE}: enrolled" in said
    assert "the broker let it in" in said, said
    return scene


@pytest.fixture(scope="module")
def serving(enrolled: Scene, packages: dict[str, Path]) -> Scene:
    """Pushed over SSH, which runs the golden vectors there; then the agent serves it."""
    said = enrolled.ferryman("push", packages["weights"], DEVICE)
    print(said, file=sys.stderr)
    agent = ["--label", "site=box", "--repository", enrolled.repository, "--sample", "1"]
    enrolled.start_agent(*agent)
    enrolled.until("the device is online", lambda: enrolled.stored("select 1 from devices where online"))
    return enrolled


def test_the_device_has_no_torch(scene: Scene) -> None:
    names = scene.root.run([PYTHON, "-c", "import importlib.util as u; print(u.find_spec('torch'))"]).stdout
    assert names == "None\n"
    assert not list((scene.root.path / "opt").rglob("libtorch*"))


@pytest.mark.parametrize("cpu", CPUS)
def test_kernels_check_themselves(scene: Scene, checker: Path, cpu: str) -> None:
    """The wheel's own library, under a program built for it here."""
    assert scene.root.run(["python3", "-c", HWCAP], cpu=cpu).stdout.split() == ["aarch64", hex(PI_HWCAP)]
    scene.root.write("/tmp/check_kernels", checker.read_bytes(), 0o755)
    done = scene.root.run(["/tmp/check_kernels", "20"], cpu=cpu, env={"LD_LIBRARY_PATH": str(LIBRARY)}, timeout_s=300)
    print(f"{cpu}: {done.stdout}", file=sys.stderr)
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == ["neon", "scalar"]


@pytest.fixture(scope="module")
def checker(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("check") / "check_kernels"
    command = ["aarch64-linux-gnu-g++", "-std=c++17", "-O1", "-ffp-contract=off", "-o", program]
    command += [f"-I{ROOT / 'runtime/native/kernels'}", *sorted((ROOT / "tests/native").glob("*.cpp"))]
    command += [f"-L{scene.root.path}{LIBRARY}", "-lferryman_kernels"]
    subprocess.run(command, check=True)
    return program


@pytest.mark.parametrize("cpu", CPUS)
def test_packages_answer_as_here(scene: Scene, packages: dict[str, Path], tmp_path: Path, cpu: str) -> None:
    """Against this machine's interpreters, and against eager's answers in the package."""
    table = []
    for name, package in packages.items():
        scene.root.write(f"/tmp/{package.name}", package.read_bytes())
        program = Path(pi_models.__file__).read_text()
        scene.root.run([PYTHON, "-c", program, f"/tmp/{package.name}", "/tmp/answers.npz"], cpu=cpu, timeout_s=300)
        (tmp_path / "answers.npz").write_bytes((scene.root.path / "tmp/answers.npz").read_bytes())
        there, here = dict(np.load(tmp_path / "answers.npz")), pi_models.answers(package)
        assert there.keys() == here.keys()
        with open_package(package) as opened:
            manifest = opened.manifest
            bars = {one.name: one.sqnr_min_db or manifest.golden_sqnr_min_db for one in manifest.variants}
        for key, expected in here.items():
            variant, interpreter, *_ = key.split()
            difference = worst(compare([expected], [there[key]]))
            exact = np.array_equal(expected, there[key])
            table.append((name, variant, interpreter, exact, difference.sqnr_db, difference.max_abs_error))
            assert not difference.shortfall(bars[variant]), f"{name} {key} on {cpu}: {difference}"
    for name, variant in sorted({row[:2] for row in table}):
        for interpreter in pi_models.PLACES:
            rows = [row for row in table if row[:3] == (name, variant, interpreter)]
            if not rows:
                continue
            exact, least = sum(row[3] for row in rows), min(row[4] for row in rows)
            shown = (
                "" if least >= SQNR_CAP_DB else f", else {least:.0f} dB at least, off by {max(r[5] for r in rows):.1e}"
            )
            print(f"{cpu} {name}/{variant} {interpreter}: {exact}/{len(rows)} bit-exact{shown}", file=sys.stderr)
    forms = {row[1].rpartition("-")[2] for row in table}
    assert {"fp32", "int8", "4bit", "binary"} <= forms, forms


def test_a_profile_says_that_it_is_emulated(serving: Scene, packages: dict[str, Path]) -> None:
    asked = ["--starts", "1", "--runs", "5", "--warmup", "1", "--no-energy", "--variant", "executorch-int8"]
    said = serving.ferryman("profile", packages["weights"], DEVICE, *asked, "--json")
    measurement = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    assert measurement["after"]["emulated"] == "qemu-aarch64-static"
    assert measurement["after"]["machine"] == "aarch64"
    assert measurement["after"]["cpu_model"] == "4x Cortex-A72"
    serving.until(
        "the measurement is stored", lambda: serving.stored("select 1 from records where kind = 'measurement'")
    )
    assert "EMULATED by qemu" in serving.ferryman("report", "--database", serving.database)


def test_over_the_air(serving: Scene, packages: dict[str, Path]) -> None:
    """Signed, fetched from the broker's namespace, on trial, confirmed."""
    serving.ferryman("publish", packages["folded"], "--version", "1")
    rollout = ["--to", "site=box", "--broker", serving.broker_of("rollout"), "--soak", "0", "--watch", "2"]
    print(serving.ferryman("rollout", "start", "folded/1", *rollout, "--slower", "off"), file=sys.stderr)
    active = SlotStore(serving.root.path / STATE.relative_to("/")).active()
    with open_package(packages["folded"]) as opened:
        assert active.slot.package_sha256 == opened.sha256


def test_a_cut_link_loses_nothing_and_doubles_nothing(serving: Scene) -> None:
    """The broker is another one when the link is back: nothing of the old connections helps."""
    assert serving.broker is not None

    def stored() -> int:
        return serving.stored("select count(*) from records")[0][0]

    def waiting() -> int:
        """Samples that the device took without the link."""
        return int(serving.root.run([PYTHON, "-c", WAITING, STATE / "outbox.sqlite", str(cut_ns)]).stdout)

    before = stored()
    serving.until("telemetry flows", lambda: stored() > before + 2)
    serving.device.down()
    cut_ns = time.time_ns() + 1_000_000_000  # a clock that is corrected may be off by less
    serving.broker.terminate()
    serving.broker.wait(60)
    serving.until("the device goes on recording", lambda: waiting() >= WHILE_CUT)
    serving.start_broker()
    newer = "select count(*) from records where recorded_ns > ?"
    assert serving.stored(newer, cut_ns) == [(0,)]
    back_ns = time.time_ns()
    serving.device.up()
    serving.until("telemetry flows again", lambda: serving.stored(newer, back_ns + 2_000_000_000)[0][0] > 2)
    while_cut = "select count(*) from records where kind = 'sample' and recorded_ns between ? and ?"
    meanwhile = (cut_ns - 1_000_000_000, back_ns)
    serving.until("so does what waited", lambda: serving.stored(while_cut, *meanwhile)[0][0] >= WHILE_CUT)
    sources = serving.stored(
        "select boot, count(*), count(distinct sequence), min(sequence), max(sequence)"
        " from records join sources on source = sources.id group by source"
    )
    print(f"stored, by boot: {sources}", file=sys.stderr)
    assert sources
    for _, count, distinct, first, last in sources:
        assert count == distinct == last - first + 1, "a number is missing or there twice"
    twice = "select kind, group_concat(sequence) from records group by kind, recorded_ns, body having count(*) > 1"
    assert not serving.stored(twice), "one thing was recorded under two numbers"
    assert serving.stored("select count(*) from quarantine") == [(0,)]


def test_the_device_tells_what_it_is(scene: Scene) -> None:
    facts = json.loads(scene.root.run([COMMAND, "facts", "--json"]).stdout)
    assert facts["machine"] == "aarch64"
    assert facts["cores"] == [{"kind": "Cortex-A72", "count": 4, "max_mhz": 1800.0}]
    assert {one["name"] for one in facts["interpreters"]} == set(pi_models.PLACES)
