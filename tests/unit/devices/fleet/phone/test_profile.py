"""Profiles on a phone, with a stand-in for the runner, in mksh and toybox."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.devices.fleet.phone.profile import check_phone_spec, options_of, profile_on_phone, settle
from ferryman.devices.fleet.phone.runner import Held, Phase, Phases, Profiled
from ferryman.profiler.report_tables import missing_notes
from ferryman.runtime.contracts.errors import CallerError, DeviceError
from ferryman.runtime.contracts.measurement import Measurement, ProfileSpec
from ferryman.runtime.contracts.record import Unavailable, decode, encode
from ferryman.runtime.package import open_package
from tests.support.phone import STAND_IN, WHY_NOT, DirectLink, stand_in_bundle
from tests.unit.devices.fleet.phone.scene import Scene

needs_phone = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
QUICK = ProfileSpec(starts=2, warmup_runs=2, runs=5, energy=False)


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path)


def profile(scene, spec, package=None, progress=lambda _: None):
    with open_package(package or scene.first) as opened:
        return profile_on_phone(
            opened,
            scene.device,
            spec,
            bundle_file=scene.bundle,
            connect=lambda _: DirectLink(scene.system),
            progress=progress,
        )


@needs_phone
def test_a_profile_is_a_measurement_as_any(scene):
    scene.push(scene.first)
    said = []
    (found,) = profile(scene, QUICK, progress=said.append)
    assert decode(encode(found), Measurement) == found
    assert (found.variant, found.interpreter, found.interpreter_version) == ("fp32-executorch", "executorch", "1.5.1")
    assert [list(start.samples) for start in found.starts] == [
        [1_000_002, 1_000_003, 1_000_004, 1_000_005, 1_000_006]
    ] * 2
    assert list(found.starts[0].warmup) == [3_000_000, 2_000_000, 1_500_000, 1_000_000, 1_000_001]
    assert (found.load_ns, found.first_run_ns, found.import_ns) == (500_000, 4_000_000, 0)
    assert found.process_ns > 0
    assert found.memory.steady.uss_bytes == 7_000_000
    assert found.memory.arena_bytes == 64
    assert isinstance(found.memory.process, Unavailable)
    assert found.energy is None
    before = found.before
    assert (before.device_model, before.soc) == ("Acme Phone 9", "Acme S900")
    assert before.cpu_model == "4x Cortex-A77"
    assert before.isa == ("asimd", "asimdhp", "asimddp")
    assert (before.cpu_count, before.affinity, before.governor) == (4, (0, 1, 2, 3), "schedutil")
    assert before.clocks_mhz == (1804.8,) * 4
    assert [(one.value, one.source) for one in before.temperatures_c] == [
        (38.5, "thermalservice CPU0"),
        (31.5, "thermalservice battery"),
    ]
    assert (before.throttled, before.power_source, before.load_1m) == ((), "battery", 1.25)
    assert before.versions == {"ferryman": "0.2.0", "executorch": "1.5.1", "android": "Android 14 (API 34)"}
    assert said[-1] == "round 2/2: fp32-executorch on executorch"


@needs_phone
def test_what_no_phone_has_is_one_line_of_a_report(scene):
    scene.push(scene.first)
    (line,) = (note for note in missing_notes(profile(scene, QUICK)) if "not taken on a phone" in note)
    assert {"memory process", "memory closed", "pipeline"} <= set(line.partition(":")[0].split("; "))


@needs_phone
def test_heat_on_the_way_is_told(scene):
    scene.push(scene.first)
    scene.system.heat(61, status=3)
    (found,) = profile(scene, QUICK)
    assert found.before.throttled == ("thermal severe",)


@needs_phone
def test_a_gate_waits_for_the_phone_and_tells(scene):
    scene.push(scene.first)
    (found,) = profile(scene, ProfileSpec(starts=1, warmup_runs=0, runs=3, energy=False, start_below_c=45))
    gate = found.starts[0].gate
    assert gate.opened
    assert gate.temperature_c.value == 38.5


@needs_phone
def test_zones_of_the_kernel_come_before_androids_service(scene):
    scene.push(scene.first)
    scene.system.write("sys/class/thermal/thermal_zone0/type", "cpu-0-0\n")
    scene.system.write("sys/class/thermal/thermal_zone0/temp", "47200\n")
    (found,) = profile(scene, QUICK)
    assert [(one.value, one.source) for one in found.before.temperatures_c] == [(47.2, "thermal_zone0 cpu-0-0")]


@needs_phone
def test_what_is_not_active_is_not_measured(scene):
    with pytest.raises(DeviceError, match="is not active on phone, none is; push it there first"):
        profile(scene, QUICK)
    scene.push(scene.first)
    with pytest.raises(DeviceError, match=r"add-1 .* is; push it there first"):
        profile(scene, QUICK, scene.second)


@needs_phone
def test_a_clock_that_is_set_back_meanwhile_is_told(scene):
    hour_ns = '"open_ns": 3_600_000_000_000'
    assert '"open_ns": 500_000' in STAND_IN
    scene.bundle = stand_in_bundle(scene.bundle, "2", STAND_IN.replace('"open_ns": 500_000', hour_ns))
    scene.push(scene.first)
    with pytest.raises(DeviceError, match=r"^phone: its clock was set back while fp32-executorch was measured.*again$"):
        profile(scene, QUICK)


@needs_phone
def test_names_that_are_not_there(scene):
    scene.push(scene.first)
    with pytest.raises(CallerError, match="no variant int8"):
        profile(scene, ProfileSpec(variants=("int8",)))
    with pytest.raises(CallerError, match=r"no interpreter ai-edge-litert.*there are: executorch"):
        profile(scene, ProfileSpec(interpreters=("ai-edge-litert",)))


@pytest.mark.parametrize(
    "spec",
    [
        ProfileSpec(operators=True),
        ProfileSpec(layers=True),
        ProfileSpec(rate_hz=10),
        ProfileSpec(sustained_s=60),
    ],
)
def test_what_no_phone_does_says_what_it_does(spec):
    with pytest.raises(CallerError, match="on a phone; a phone measures cold start, latency, memory, energy"):
        check_phone_spec(spec)


def profiled(warmup_ns, samples_ns):
    phase = Phase(unavailable="x")
    return Profiled(
        open_ns=1,
        first_run_ns=1,
        warmup_ns=tuple(warmup_ns),
        samples_ns=tuple(samples_ns),
        started_boottime_ns=0,
        ended_boottime_ns=10**9,
        memory=Held(phases=Phases(before=phase, opened=phase, first_run=phase, after=phase)),
    )


def test_runs_that_settle_early_are_timed_runs():
    settled_at = [9_000_000] * 10 + [5_000_000] * 100
    warmup, samples, settled = settle(profiled(settled_at, [5_000_000] * 50), ProfileSpec())
    assert settled
    assert statistics.median(samples) == 5_000_000
    assert 10 < len(warmup) < 60
    assert len(warmup) + len(samples) == 160


def test_runs_that_never_settle_say_so():
    falling = [int(50_000_000 * 0.9**n) + 1_000_000 for n in range(20)]
    warmup, samples, settled = settle(profiled(falling, [1_000_000] * 30), ProfileSpec())
    assert not settled
    assert (warmup, len(samples)) == (falling, 30)


@given(
    st.lists(st.integers(1, 10**9), max_size=200),
    st.lists(st.integers(1, 10**9), min_size=5, max_size=50),
    st.sampled_from([None, 0, 3]),
    st.sampled_from([None, 2]),
)
def test_every_run_is_kept_once(warmup_ns, samples_ns, given_runs, runs):
    spec = ProfileSpec(warmup_runs=given_runs, runs=runs)
    warmup, samples, _ = settle(profiled(warmup_ns, samples_ns), spec)
    assert [*warmup, *samples] == [*warmup_ns, *samples_ns]
    assert samples


def test_options():
    assert options_of(ProfileSpec()).words == "--threads 1 --warmup-s 3 --runs-min 1 --runs-max 1000000 --seconds 5"
    assert options_of(ProfileSpec(runs=7, warmup_runs=2)).words == (
        "--threads 1 --warmup-s 0 --runs-min 9 --runs-max 9 --seconds 0"
    )
    assert options_of(ProfileSpec(single_stream=True)).seconds == 63
