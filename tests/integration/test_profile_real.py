"""Real interpreters, each in a process of its own, on a real package."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest

from ferryman.profiler import runner
from ferryman.profiler.runner import profile_package, run_profile
from ferryman.runtime.contracts.errors import RuntimeCrash, RuntimeFault
from ferryman.runtime.contracts.manifest import GoldenVector, Lowering, Manifest, Requirements, Variant
from ferryman.runtime.contracts.measurement import Measurement, Memory, ProfileSpec
from ferryman.runtime.contracts.record import Unavailable, decode, encode
from ferryman.runtime.contracts.tensor import to_tensors
from ferryman.runtime.package import open_package, write_package
from ferryman.runtime.session import installed, open_session
from tests.support.packages import write_tiny_package

ROOT = Path(__file__).parents[2]
DEVICE_PYTHON = ROOT / ".venv-device" / "bin" / "python"
needs_litert = pytest.mark.skipif("ai-edge-litert" not in installed("tflite"), reason="ai-edge-litert is not installed")
FOREVER = ProfileSpec(runs=1_000_000, warmup_runs=1_000_000, interpreters=("ai-edge-litert",))


def check(found: Measurement, spec: ProfileSpec) -> None:
    """What holds of every measurement, whatever the interpreter."""
    assert len(found.starts) == spec.starts
    for start in found.starts:
        assert len(start.samples) == spec.runs
        if spec.warmup_runs is not None:
            assert len(start.warmup) == spec.warmup_runs
        times = (start.process_ns, start.import_ns, start.load_ns, start.first_run_ns, *start.samples, *start.warmup)
        assert min(times) > 0
        assert start.process_ns < 600e9
        assert isinstance(start.busy, Unavailable) or 0 <= start.busy <= 1
    assert len(found.samples_ns) == spec.runs * spec.starts
    assert found.cache in ("off", "memory")  # a first start
    phases = [getattr(found.memory, name) for name in ("process", "start", "loaded", "first_run", "steady", "closed")]
    assert all(isinstance(phase, Memory) for phase in phases), phases
    assert found.memory.peak_rss_bytes == max(phase.peak_rss_bytes for phase in phases)
    for phase in phases:
        assert 0 < phase.uss_bytes <= phase.pss_bytes <= phase.rss_bytes <= 2 * phase.peak_rss_bytes
        assert 0 < phase.file_bytes + phase.anonymous_bytes <= phase.pss_bytes
    assert phases[1].pss_bytes > phases[0].pss_bytes  # an interpreter is not for nothing
    assert found.before.versions == found.after.versions
    assert found.before.versions[found.interpreter] == found.interpreter_version
    assert found.pipeline.whole.count == found.pipeline.model.count > 10
    assert all(inner < outer for inner, outer in zip(found.pipeline.model, found.pipeline.whole, strict=True))
    if isinstance(found.energy, Unavailable):
        assert found.energy.reason
    assert decode(encode(found), Measurement) == found


@needs_litert
def test_a_package_is_measured_on_the_interpreter_here(tmp_path):
    path = write_tiny_package(tmp_path / "tiny.ferry")
    spec = ProfileSpec(runs=50, warmup_runs=5, interpreters=("ai-edge-litert",))
    told: list[str] = []
    (found,) = profile_package(path, spec, told.append)
    check(found, spec)
    with open_package(path) as package:
        assert found.package_sha256 == package.sha256
        assert found.artifact_bytes == len(package.read("artifacts/model.tflite"))
    assert found.interpreter == "ai-edge-litert"
    assert found.input_shapes == ((1, 4),)
    assert told == [f"round {turn}/5: fp32-tflite on ai-edge-litert" for turn in range(1, 6)]


@needs_litert
def test_what_is_asked_for_beside_is_measured_once(tmp_path):
    path = write_tiny_package(tmp_path / "tiny.ferry")
    spec = ProfileSpec(starts=2, rate_hz=50, sustained_s=2, interpreters=("ai-edge-litert",))
    (found,) = profile_package(path, spec)
    assert found.arrival.latency.count == 500
    assert not found.arrival.behind
    assert [round(interval.seconds) for interval in found.sustained] == [1, 1]
    assert min(start.samples.count for start in found.starts) >= 60


@needs_litert
def test_a_crash_beside_leaves_what_was_measured(tmp_path, monkeypatch):
    """Operators and layers have processes of their own, which may die alone."""
    apart = runner._measure_apart

    def dying(case, part, *rest):
        if part == "operators":
            raise RuntimeCrash("the process that measured it died of SIGSEGV")
        return apart(case, part, *rest)

    monkeypatch.setattr(runner, "_measure_apart", dying)
    spec = ProfileSpec(starts=1, runs=5, warmup_runs=0, interpreters=("ai-edge-litert",), energy=False, operators=True)
    (found,) = profile_package(write_tiny_package(tmp_path / "tiny.ferry"), spec)
    assert found.operators == Unavailable(reason="the process that measured it died of SIGSEGV")
    check(found, spec)


@needs_litert
def test_cases_of_several_packages_are_measured_in_turn(tmp_path):
    told: list[str] = []
    spec = ProfileSpec(starts=3, runs=5, warmup_runs=0, interpreters=("ai-edge-litert",), energy=False)
    with contextlib.ExitStack() as stack:
        cases = []
        for added in (1, 2):
            path = write_tiny_package(tmp_path / f"{added}.ferry", added=added)
            package = stack.enter_context(open_package(path))
            folder = stack.enter_context(runner.extracted(package))
            cases += runner.cases_of(folder, package.manifest, package.sha256, spec)
        measured = runner.profile_cases(cases, spec, told.append)
    assert [one.package_name for one in measured] == ["add-1", "add-2"]
    names = [f"{case.manifest.name} {case.sha256[:8]} {case}" for case in cases]
    rounds = [names, names[::-1], names]
    assert told == [f"round {turn}/3: {name}" for turn, order in enumerate(rounds, 1) for name in order]
    for one in measured:
        check(one, spec)


@pytest.mark.skipif(not DEVICE_PYTHON.exists(), reason="there is no .venv-device")
def test_both_tflite_interpreters_are_measured_in_the_device_environment(tmp_path):
    path = write_tiny_package(tmp_path / "tiny.ferry")
    code = (
        "import sys; from pathlib import Path\n"
        "from ferryman.profiler.runner import profile_package\n"
        "from ferryman.runtime.contracts.measurement import ProfileSpec\n"
        "from ferryman.runtime.contracts.record import encode\n"
        "found = profile_package(Path(sys.argv[1]), ProfileSpec(runs=30, starts=2))\n"
        "for one in found: print(encode(one).decode())\n"
    )
    done = subprocess.run([DEVICE_PYTHON, "-c", code, path], capture_output=True, timeout=120, check=True)
    measured = [decode(line, Measurement) for line in done.stdout.splitlines()]
    assert [one.interpreter for one in measured] == ["ai-edge-litert", "tflite-runtime"]
    for one in measured:
        check(one, ProfileSpec(runs=30, starts=2))


@pytest.mark.skipif(not installed("executorch"), reason="the native ExecuTorch library is not installed")
def test_executorch_is_measured(tmp_path):
    model = ROOT / "tests" / "golden" / "pte" / "linear.pte"
    x, answer = np.ones((1, 4), np.float32), np.full((1, 4), 3, np.float32)
    with open_session(model, "executorch") as session:
        signature = session.signature
    write_package(
        tmp_path / "linear.ferry",
        name="linear",
        signature=signature,
        variants=[
            Variant(
                name="fp32-executorch",
                form="fp32",
                runtime="executorch",
                payload="artifacts/model.pte",
                signature=signature,
                requires=Requirements(interpreters={"executorch": "1.5.1"}, memory_estimate_bytes=1 << 20),
                lowering=Lowering(delegated={}, fallback={"linear": 1}, delegates=0),
                verified=(),
            )
        ],
        artifacts={"artifacts/model.pte": model.read_bytes()},
        golden=[GoldenVector(inputs=to_tensors([x]), outputs=to_tensors([answer]))],
        golden_sqnr_min_db=60.0,
        created_with={},
    )
    (found,) = profile_package(tmp_path / "linear.ferry", ProfileSpec(runs=30, starts=2))
    check(found, ProfileSpec(runs=30, starts=2))
    assert found.interpreter == "executorch"


@needs_litert
def test_the_fastest_run_agrees_with_a_plain_loop_over_the_same_session(tmp_path):
    """Both time the same call; whatever else the machine does, a factor of ten tells a wrong unit or scope."""
    spec = ProfileSpec(runs=400, interpreters=("ai-edge-litert",))
    (found,) = profile_package(write_tiny_package(tmp_path / "tiny.ferry"), spec)
    directory, manifest, _ = extracted(tmp_path)
    with open_session(directory / manifest.variants[0].payload, "tflite", interpreter="ai-edge-litert") as session:
        inputs = [tensor.to_array() for tensor in golden_inputs(tmp_path)]
        samples = []
        for _ in range(400):
            begin = time.perf_counter_ns()
            session.run(inputs)
            samples.append(time.perf_counter_ns() - begin)
    assert 1 / 10 < min(found.samples_ns) / min(samples) < 10


@needs_litert
def test_a_refused_artifact_is_the_runtimes_own_message(tmp_path):
    directory, manifest, sha256 = extracted(tmp_path)
    (directory / manifest.variants[0].payload).write_bytes(b"not a model at all")
    with pytest.raises(RuntimeFault, match=r"is not a \.tflite file"):
        run_profile(directory, manifest, sha256, ProfileSpec(interpreters=("ai-edge-litert",)))


@needs_litert
def test_a_run_that_takes_too_long_is_ended(tmp_path):
    directory, manifest, sha256 = extracted(tmp_path)
    before = set(psutil.Process().children(recursive=True))  # servers of other tests
    with pytest.raises(RuntimeFault, match="took longer than 2 s and was ended"):
        run_profile(directory, manifest, sha256, msgspec.structs.replace(FOREVER, timeout_s=2.0))
    assert not set(psutil.Process().children(recursive=True)) - before


@needs_litert
def test_a_crash_names_what_was_measured_and_how_it_died(tmp_path):
    directory, manifest, sha256 = extracted(tmp_path)
    killer = threading.Thread(target=lambda: wait_for_child(os.getpid()).send_signal(signal.SIGSEGV))
    killer.start()
    with pytest.raises(RuntimeCrash, match="fp32-tflite on ai-edge-litert died of SIGSEGV"):
        run_profile(directory, manifest, sha256, FOREVER)
    killer.join()


@needs_litert
def test_the_measuring_process_dies_with_the_one_that_asked(tmp_path):
    path = write_tiny_package(tmp_path / "tiny.ferry")
    code = (
        "import sys; from pathlib import Path\n"
        "from ferryman.profiler.runner import profile_package\n"
        "from ferryman.runtime.contracts.measurement import ProfileSpec\n"
        "spec = ProfileSpec(runs=1_000_000, warmup_runs=1_000_000, interpreters=('ai-edge-litert',))\n"
        "profile_package(Path(sys.argv[1]), spec)\n"
    )
    asking = subprocess.Popen([sys.executable, "-c", code, path], env=os.environ | {"TMPDIR": str(tmp_path)})
    try:
        measuring = wait_for_child(asking.pid)
    finally:
        asking.kill()
        asking.wait()
    measuring.wait(timeout=60)


def extracted(tmp_path: Path) -> tuple[Path, Manifest, str]:
    with open_package(write_tiny_package(tmp_path / "tiny.ferry")) as package:
        for payload in package.manifest.payloads:
            target = tmp_path / payload.path
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(package.read(payload.path))
        return tmp_path, package.manifest, package.sha256


def golden_inputs(tmp_path: Path):
    with open_package(tmp_path / "tiny.ferry") as package:
        return package.golden()[0].inputs


def wait_for_child(pid: int) -> psutil.Process:
    """The measuring process, once its interpreter is loaded: by then it has asked to be ended with its parent."""
    parent = psutil.Process(pid)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for child in parent.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if any("ai_edge_litert" in region.path for region in child.memory_maps()):
                    return child
        time.sleep(0.05)
    raise AssertionError("no measuring process appeared")
