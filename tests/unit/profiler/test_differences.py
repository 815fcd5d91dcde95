from __future__ import annotations

import msgspec
import pytest

from ferryman.profiler.differences import differing
from ferryman.runtime.contracts.measurement import Reading
from ferryman.runtime.contracts.record import Unavailable
from tests.support.measurements import bare_measurement, full_measurement, measurement, start

BASE = full_measurement()


def after(**changes):
    return msgspec.structs.replace(BASE, after=msgspec.structs.replace(BASE.after, **changes))


def before(**changes):
    return msgspec.structs.replace(BASE, before=msgspec.structs.replace(BASE.before, **changes))


def names(one, two) -> list[str]:
    return [difference.name for difference in differing(one, two)]


@pytest.mark.parametrize("one", [BASE, measurement(), bare_measurement()])
def test_nothing_differs_from_itself(one):
    assert differing(one, one) == ()


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        (before(device_model="another board"), "device"),
        (before(cpu_model="another"), "processor"),
        (before(soc="another"), "chip"),
        (before(machine="riscv64"), "machine"),
        (before(cpu_count=64), "processors"),
        (before(isa=("popcnt",)), "instruction sets"),
        (msgspec.structs.replace(BASE, spec=msgspec.structs.replace(BASE.spec, threads=7)), "threads"),
        (msgspec.structs.replace(BASE, input_shapes=((9, 9),)), "input shapes"),
    ],
)
def test_another_device_other_threads_or_another_input_bar_a_comparison(changed, name):
    (found,) = differing(BASE, changed)
    assert (found.name, found.bars) == (name, True)
    assert found.baseline != found.other


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        (after(governor="another"), "governor"),
        (after(clocks_mhz=(600.0,) * 4), "clock"),
        (after(throttled=("frequency capped",)), "throttled"),
        (after(temperatures_c=(Reading(value=99.0, source="cpu"),)), "hottest zone"),
        (after(power_source="another"), "power source"),
        (after(memory_available_bytes=1), "memory is scarce"),
        (before(affinity=(0,)), "cores it might use"),
        (before(kernel="1.0"), "kernel"),
        (before(load_1m=50.0), "load before"),
        (before(memory_total_bytes=10**6), "memory"),
        (msgspec.structs.replace(BASE, cache="warm"), "packed weights"),
        (msgspec.structs.replace(BASE, variant="int8"), "variant"),
        (msgspec.structs.replace(BASE, form="int8"), "form"),
        (msgspec.structs.replace(BASE, interpreter_version="9"), "interpreter"),
        (msgspec.structs.replace(BASE, package_sha256="1" * 64), "package"),
        (msgspec.structs.replace(BASE, starts=(start([1, 2, 3], busy=0.9),)), "taken by others"),
    ],
)
def test_what_may_move_the_numbers_is_told(changed, name):
    (found,) = differing(BASE, changed)
    assert (found.name, found.bars) == (name, False)
    assert found.baseline != found.other


def test_versions_are_told_one_by_one():
    versions = {**BASE.before.versions, "numpy": "0.1", "new": "1"}
    changed = msgspec.structs.replace(
        BASE,
        before=msgspec.structs.replace(BASE.before, versions=versions),
        after=msgspec.structs.replace(BASE.after, versions=versions),
    )
    found = {d.name: (d.baseline, d.other) for d in differing(BASE, changed)}
    assert found["version of new"] == ("none", "1")
    assert found["version of numpy"][1] == "0.1"


def test_what_is_read_for_a_moment_may_waver():
    clocks = tuple(mhz * 1.02 for mhz in BASE.after.clocks_mhz)
    warmer = tuple(Reading(value=one.value + 3, source=one.source) for one in BASE.after.temperatures_c)
    assert differing(BASE, after(clocks_mhz=clocks, temperatures_c=warmer)) == ()


def test_what_one_of_them_could_not_tell_is_told_and_bars_nothing():
    (found,) = differing(BASE, before(device_model=Unavailable(reason="no tree")))
    assert (found.name, found.other, found.bars) == ("device", "unavailable (no tree)", False)


def test_what_bars_comes_first():
    changed = msgspec.structs.replace(after(governor="another"), input_shapes=((9, 9),), cache="warm")
    assert names(BASE, changed) == ["input shapes", "packed weights", "governor"]
