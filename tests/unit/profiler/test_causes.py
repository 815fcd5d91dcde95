from __future__ import annotations

import os

import msgspec
import pytest

from ferryman.profiler.causes import what_disturbed, why_slower
from ferryman.profiler.conditions import read_conditions, read_state
from ferryman.profiler.sustained import sustain
from ferryman.runtime.contracts.record import Unavailable
from tests.support.measurements import bare_measurement, measurement, start
from tests.unit.profiler.trees import PI5, write_tree

CLOCK = "sys/devices/system/cpu/cpu{}/cpufreq/scaling_cur_freq"
GOVERNOR = "sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor"
FLAGS = "sys/devices/platform/soc/soc:firmware/get_throttled"
HEAT = "sys/class/thermal/thermal_zone0/temp"
COOL = PI5 | {FLAGS: "0\n"}


@pytest.fixture
def on(tmp_path):
    """A measurement on a device that is such a tree, by what differs from a Raspberry Pi 5 at ease."""
    count = 0

    def measured(tree=None, *, busy=0.0, settled=True, sha256="00", medians=(100, 101, 99), **changes):
        nonlocal count
        count += 1
        conditions = read_conditions({}, write_tree(tmp_path / str(count), COOL | (tree or {})))
        starts = tuple(start([median] * 9, busy=busy, settled=settled) for median in medians)
        plain = measurement(package_sha256=sha256)
        return msgspec.structs.replace(plain, starts=starts, before=conditions, after=conditions, **changes)

    return measured


def names(causes) -> list[str]:
    return [cause.name for cause in causes]


def everywhere(file: str, text: str) -> dict[str, str]:
    return {file.format(core): text for core in range(4)}


# Two measurements.


def test_a_lower_clock_is_named(on):
    (found,) = why_slower(on(), on(everywhere(CLOCK, "1500000\n")))
    assert (found.name, found.words) == ("clock", "a lower clock: 1500 MHz, not 2400 MHz")


def test_idle_cores_do_not_hide_that_the_busy_one_is_as_fast(on):
    idle = everywhere(CLOCK, "600000\n")
    ours = min(os.sched_getaffinity(0))
    assert names(why_slower(on(), on(idle | {CLOCK.format(ours): "2400000\n"}, sha256="11"))) == ["artifact"]


def test_a_governor_is_named(on):
    (found,) = why_slower(on(), on(everywhere(GOVERNOR, "powersave\n")))
    assert (found.name, found.words) == ("governor", "governor powersave, not ondemand")


def test_throttling_is_named_with_its_reasons_and_heat_beside_it(on):
    found = why_slower(on(), on({FLAGS: "4\n", HEAT: "85100\n"} | everywhere(CLOCK, "1800000\n")))
    assert names(found) == ["throttled", "clock", "heat"]
    assert found[0].words == "the clock was held down: throttled"
    assert found[2].words == "hotter: 85.1 °C, not 48.3 °C"


def test_what_held_the_clock_down_earlier_is_no_cause(on):
    assert names(why_slower(on(), on({FLAGS: "40000\n"}, sha256="11"))) == ["artifact"]


def test_others_at_work_are_named(on):
    (found,) = why_slower(on(busy=0.02), on(busy=0.48))
    assert (found.name, found.words) == ("busy", "other processes took 48% of the processors, not 2%")


def test_scarce_memory_is_named(on):
    tree = {"proc/meminfo": "MemTotal:        8256624 kB\nMemAvailable:    200000 kB\n"}
    assert names(why_slower(on(), on(tree))) == ["memory"]


def test_another_version_is_named(on):
    one, two = on(), on()
    of_two = {**two.before.versions, "numpy": "0.1"}
    changed = msgspec.structs.replace(two.before, versions=of_two)
    (found,) = why_slower(one, msgspec.structs.replace(two, before=changed, after=changed))
    assert found.name == "version"
    assert found.words.startswith("numpy 0.1, not ")


def test_processes_that_had_not_settled_are_named(on):
    (found,) = why_slower(on(), on(settled=False))
    assert found.name == "warm-up"
    assert found.words.startswith("3 of 3 processes")


def test_with_all_else_equal_it_is_the_artifact(on):
    assert names(why_slower(on(), on(sha256="11"))) == ["artifact"]
    assert names(why_slower(on(), on(variant="int8"))) == ["artifact"]
    assert names(why_slower(on(), on(interpreter="tflite-runtime"))) == ["artifact"]


def test_the_same_artifact_slower_under_the_same_conditions_is_not_explained(on):
    assert names(why_slower(on(), on())) == ["unknown"]


def test_what_cannot_be_known_is_no_cause():
    assert names(why_slower(bare_measurement(), bare_measurement())) == ["unknown"]


# One measurement.


def test_a_measurement_at_ease_has_nothing_against_it(on):
    assert what_disturbed(on()) == ()
    assert what_disturbed(bare_measurement()) == ()


def test_a_process_beside_which_others_worked_is_named(on):
    quiet = on()
    starts = (*quiet.starts, start([150] * 9, busy=0.5))
    (found,) = what_disturbed(msgspec.structs.replace(quiet, starts=starts))
    assert found.name == "busy"
    assert found.words == "beside 1 of 4 processes others took 50% to 50% of the processors"


def test_a_slow_process_is_told_of_though_nothing_tells_why(on):
    (found,) = what_disturbed(on(medians=(100, 100, 200)))
    assert (found.name, found.words) == ("unknown", "process 3 of 3 took up to 2.00 times as long as the middle one")


def test_a_device_that_is_throttled_or_out_of_memory_is_named(on):
    tree = {FLAGS: "50005\n", "proc/meminfo": "MemTotal: 8256624 kB\nMemAvailable: 200000 kB\n"}
    found = what_disturbed(on(tree, settled=False))
    assert names(found) == ["throttled", "memory", "warm-up"]
    assert "under-voltage" in found[0].words


def test_a_clock_that_falls_during_a_sustained_run_is_named(on, tmp_path):
    """The device's files change on the way, and runs take longer as the clock tells."""
    root = write_tree(tmp_path / "device", COOL)
    now_ns = 0

    def run():
        nonlocal now_ns
        if now_ns > 5e9 and (root / FLAGS).read_text() == "0\n":
            write_tree(root, everywhere(CLOCK, "1200000\n") | {FLAGS: "4\n"})
        clock = int((root / CLOCK.format(0)).read_text())
        now_ns += 10_000_000 * 2_400_000 // clock

    intervals = sustain(run, 10.0, kept_max=10_000, root=root, clock_ns=lambda: now_ns, state=read_state)
    (found,) = what_disturbed(on(sustained=intervals))
    assert found.name == "drift"
    assert found.words == (
        "the last interval took 2.00 times as long as the first: the clock was held down: throttled; "
        "the clock fell from 2400 to 1200 MHz"
    )


def test_a_sustained_run_without_sensors_that_drifts_says_so(on):
    (interval,) = bare_measurement().sustained
    slower = msgspec.structs.replace(interval, samples=start([9, 9]).samples, throttled=Unavailable(reason="none"))
    (found,) = what_disturbed(on(sustained=(interval, slower)))
    assert found.words.endswith("nothing on record tells why")
