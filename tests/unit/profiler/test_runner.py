from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import pytest

from ferryman.profiler.runner import RUNS_MAX, THREADS_MAX, plan, profile_package, run_profile
from ferryman.runtime.contracts.errors import CallerError, DeviceError, PackageError, RuntimeCrash
from ferryman.runtime.contracts.manifest import Manifest
from ferryman.runtime.contracts.measurement import ProfileSpec
from ferryman.runtime.golden import usable_interpreters
from ferryman.runtime.package import open_package
from tests.support.packages import write_tiny_package

BOTH = {"ai-edge-litert": "2.3.0", "tflite-runtime": "2.14.0"}


def manifest_of(tmp_path: Path, *, isa: tuple[str, ...] = ()) -> Manifest:
    """Variants `fp32-tflite` and `other`."""
    with open_package(write_tiny_package(tmp_path / "tiny.ferry", isa=isa)) as package:
        (variant,) = package.manifest.variants
        other = msgspec.structs.replace(variant, name="other")
        return msgspec.structs.replace(package.manifest, variants=(variant, other))


def names(pairs) -> list[tuple[str, str]]:
    return [(variant.name, interpreter) for variant, interpreter in pairs]


def test_everything_usable_is_planned_in_order(tmp_path):
    found = plan(manifest_of(tmp_path), ProfileSpec(), lambda _: BOTH, frozenset())
    assert names(found) == [(v, i) for v in ("fp32-tflite", "other") for i in BOTH]


def test_the_spec_selects_variants_and_interpreters(tmp_path):
    spec = ProfileSpec(variants=("other",), interpreters=("tflite-runtime",))
    assert names(plan(manifest_of(tmp_path), spec, lambda _: BOTH, frozenset())) == [("other", "tflite-runtime")]


def test_an_unknown_variant_is_the_callers_fault_and_the_others_are_listed(tmp_path):
    with pytest.raises(CallerError, match=r"no variant int8 in package add-1; there are: fp32-tflite, other"):
        plan(manifest_of(tmp_path), ProfileSpec(variants=("int8",)), lambda _: BOTH, frozenset())


def test_an_interpreter_that_is_not_here_is_the_callers_fault_and_the_others_are_listed(tmp_path):
    with pytest.raises(CallerError, match=r"no interpreter onnx .*there are: ai-edge-litert, tflite-runtime"):
        plan(manifest_of(tmp_path), ProfileSpec(interpreters=("onnx",)), lambda _: BOTH, frozenset())


def test_a_device_without_an_interpreter_is_told_what_to_install(tmp_path):
    with pytest.raises(DeviceError, match=r"needed is one of ai-edge-litert >= 2\.0, tflite-runtime >= 2\.14"):
        plan(manifest_of(tmp_path), ProfileSpec(), lambda _: {}, frozenset())


def test_a_variant_for_another_processor_is_never_run(tmp_path):
    manifest = manifest_of(tmp_path, isa=("avx512f",))
    with pytest.raises(DeviceError, match="a processor with avx512f"):
        plan(manifest, ProfileSpec(), lambda _: BOTH, frozenset({"avx2"}))
    assert len(plan(manifest, ProfileSpec(), lambda _: BOTH, frozenset({"avx512f"}))) == 4


def test_operators_this_ferryman_has_not_are_named(tmp_path):
    with open_package(write_tiny_package(tmp_path / "new.ferry", operators=99)) as package:
        manifest = package.manifest
    with pytest.raises(DeviceError, match=r"and ferryman's operators of version 99, found version 4"):
        plan(manifest, ProfileSpec(), usable_interpreters, frozenset())


@pytest.mark.parametrize(
    "spec",
    [
        ProfileSpec(runs=0),
        ProfileSpec(runs=RUNS_MAX + 1),
        ProfileSpec(warmup_runs=-1),
        ProfileSpec(threads=0),
        ProfileSpec(threads=THREADS_MAX + 1),
        ProfileSpec(starts=0),
        ProfileSpec(starts=101),
        ProfileSpec(error=0.0),
        ProfileSpec(error=float("nan")),
        ProfileSpec(rate_hz=0.0),
        ProfileSpec(rate_hz=1e-300),
        ProfileSpec(rate_hz=float("inf")),
        ProfileSpec(sustained_s=-1.0),
        ProfileSpec(sustained_s=float("nan")),
        ProfileSpec(start_below_c=float("nan")),
        ProfileSpec(timeout_s=float("nan")),
        ProfileSpec(timeout_s=float("inf")),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_runs(tmp_path, spec):
    with pytest.raises(CallerError, match="must be"):
        profile_package(write_tiny_package(tmp_path / "tiny.ferry"), spec)


def test_two_rules_for_the_number_of_runs_are_refused(tmp_path):
    with pytest.raises(CallerError, match="both say when to stop"):
        profile_package(write_tiny_package(tmp_path / "tiny.ferry"), ProfileSpec(runs=5, single_stream=True))


def test_a_package_without_golden_vectors_has_nothing_to_measure_on(tmp_path):
    manifest = msgspec.structs.replace(manifest_of(tmp_path), golden=())
    with pytest.raises(PackageError, match="no golden vector"):
        run_profile(tmp_path, manifest, "00", ProfileSpec())


@pytest.mark.parametrize("field", ["variants", "interpreters"])
def test_one_name_is_no_list_of_names(field):
    with pytest.raises(CallerError, match=rf"{field} are names in a tuple, found 'tflite'; write \('tflite',\)"):
        ProfileSpec(**{field: "tflite"})


def test_text_will_do_for_a_path(tmp_path):
    with pytest.raises(CallerError, match="no variant nope"):
        profile_package(str(write_tiny_package(tmp_path / "tiny.ferry")), ProfileSpec(variants=["nope"]))


# What the measuring process may do.


def measured_by(tmp_path, monkeypatch, script):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    return profile_package(write_tiny_package(tmp_path / "tiny.ferry"), ProfileSpec(interpreters=("ai-edge-litert",)))


@pytest.mark.parametrize(("number", "how"), [(9, "died of SIGKILL"), (40, "died of signal 40")])
def test_a_measuring_process_that_dies_is_told_with_its_signal(tmp_path, monkeypatch, number, how):
    with pytest.raises(RuntimeCrash, match=f"measured fp32-tflite on ai-edge-litert {how}"):
        measured_by(tmp_path, monkeypatch, f"kill -{number} $$; sleep 5")


# What a profile leaves behind.

PROFILE = """
import sys, time
from ferryman.profiler import runner
runner.run_profile = lambda *_, **__: (print("extracted", flush=True), time.sleep(60))
runner.profile_package(sys.argv[1], runner.ProfileSpec())
"""


def extracted(tmp_path):
    return sorted(tmp_path.glob("ferryman-profile-*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_a_killed_profile_left_is_swept_by_the_next_and_what_is_in_use_is_not(tmp_path, monkeypatch, number):
    package = write_tiny_package(tmp_path / "tiny.ferry")
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spec = ProfileSpec(variants=("nope",))
    with subprocess.Popen(
        [sys.executable, "-c", PROFILE, str(package)], env=environment, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (folder,) = extracted(tmp_path)
        long_ago = time.time() - 1000
        os.utime(folder, (long_ago, long_ago))
        with pytest.raises(CallerError):
            profile_package(package, spec)
        assert extracted(tmp_path) == [folder]
        process.send_signal(number)
    with pytest.raises(CallerError):
        profile_package(package, spec)
    assert not extracted(tmp_path)


def test_only_old_folders_of_ones_own_are_swept(tmp_path, monkeypatch):
    """A young one may be of a profile that has not locked it yet; a link may lead anywhere."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "ferryman-profile-young").mkdir()
    kept = tmp_path / "kept"
    kept.mkdir()
    (tmp_path / "ferryman-profile-link").symlink_to(kept)
    (tmp_path / "ferryman-profile-file").touch()
    long_ago = time.time() - 1000
    for path in (kept, tmp_path / "ferryman-profile-file"):
        os.utime(path, (long_ago, long_ago))
    before = extracted(tmp_path)
    with pytest.raises(CallerError):
        profile_package(write_tiny_package(tmp_path / "tiny.ferry"), ProfileSpec(variants=("nope",)))
    assert extracted(tmp_path) == before
    assert kept.is_dir()
