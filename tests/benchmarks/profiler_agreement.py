"""Whether the profiler's numbers are right: beside others' tools in interleaved runs, and from profile to profile."""

from __future__ import annotations

import itertools
import json
import math
import operator
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ferryman.profiler.differences import differing
from ferryman.profiler.runner import profile_package
from ferryman.profiler.stats import median_error, summarize
from ferryman.profiler.verdict import log_ratio
from ferryman.runtime.contracts.measurement import Measurement, ProfileSpec
from tests.benchmarks.frame import Bar, CannotRun, Figure, Goal, Part, figure, interleave, progress
from tests.benchmarks.profiler_models import Model, resnet20

LITERT = Goal("p50 off litert-benchmark's", "<", 3.0, "%")
EXECUTORCH = Goal("p50 off a loop over executorch's own execute", "<", 3.0, "%")
REPEATS = Goal("profiles in a row that agree within their stated errors", ">=", 95.0, "%")
TOOL = "ai_edge_litert.tools.benchmark_litert_model"
"""What `litert-benchmark` runs."""
_ROUNDS, _RUNS, _WARMUP = 20, 150, 30
_PROFILES, _PAIRS_LEAST = 40, 10

# Prints the median of the runs in seconds; the artifact, runs and warm-up runs are its arguments.
EXECUTOR_LOOP = """
import sys, time, numpy, torch
from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
from executorch.runtime import Runtime
_unsafe_reset_threadpool(1)
program = Runtime.get().load_program(sys.argv[1])
method = program.load_method("forward")
inputs = [torch.from_numpy(numpy.load(sys.argv[2]))]
took = []
for _ in range(int(sys.argv[3])):
    begin = time.perf_counter()
    method.execute(inputs)
    took.append(time.perf_counter() - begin)
print(numpy.median(took[int(sys.argv[4]):]))
"""


def beside_litert_benchmark() -> Iterator[Bar | Figure]:
    """LiteRT's own tool, a process a round, and a profile of the same network of one process."""
    progress("p50 beside litert-benchmark's")
    model = resnet20()

    def theirs() -> float:
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            counts = (f"--num_runs={_RUNS}", f"--warmup_runs={_WARMUP}", "--num_threads=1")
            _run(sys.executable, "-m", TOOL, f"--model={model.tflite}", *counts, f"--result_json={file.name}")
            return float(json.loads(file.read())["latency"]["median_ms"]) / 1e3

    yield from _agreement(LITERT, lambda: _profiled(model, "ai-edge-litert"), theirs)


def beside_executor_loop() -> Iterator[Bar | Figure]:
    """A loop over ExecuTorch's own Python module, a process a round, likewise."""
    progress("p50 beside a loop over executorch's own execute")
    model = resnet20()
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.npy"
        np.save(image, model.image)

        def theirs() -> float:
            counts = str(_RUNS + _WARMUP), str(_WARMUP)
            return float(_run(sys.executable, "-c", EXECUTOR_LOOP, str(model.pte), str(image), *counts))

        yield from _agreement(EXECUTORCH, lambda: _profiled(model, "executorch"), theirs)


def repeats() -> Iterator[Bar | Figure]:
    """Profiles in a row, each and the next: whether their intervals overlap.

    The error that a profile states is of scatter, not of what others begin to do afterwards; so the bar counts pairs
    whose conditions on record do not differ, and the share of all stands beside it.
    """
    progress("profiles in a row")
    model = resnet20()
    spec = ProfileSpec(interpreters=("ai-edge-litert",), starts=5, runs=50, energy=False)
    found = [profile_package(model.package, spec)[0] for _ in range(_PROFILES)]
    pairs = list(itertools.pairwise(found))
    alike = [pair for pair in pairs if not differing(*pair)]
    if len(alike) < _PAIRS_LEAST:
        raise CannotRun(
            f"conditions changed in {len(pairs) - len(alike)} of {len(pairs)} pairs, last: "
            f"{differing(*pairs[-1]) or 'none'}; run it while nothing else does"
        )
    yield REPEATS.measured([_share(alike, operator.add)])
    yield figure("  within the error of their difference", [_share(alike, math.hypot)], "%")
    yield figure("  of all pairs, whatever changed", [_share(pairs, operator.add)], "%")
    yield figure("  pairs whose conditions did not change", [float(len(alike))])
    yield figure("  stated error of p50, half of the 95 % interval", [median_error(m.starts) * 100 for m in found], "%")
    yield figure("  p50 of the profiles", [_p50_s(one) * 1e3 for one in found], "ms")


def _share(pairs: Sequence[tuple[Measurement, Measurement]], both: Callable[[float, float], float]) -> float:
    """Percent of pairs no farther apart than their errors, taken together by `both`."""
    within = [
        abs(_p50_s(one) - _p50_s(two)) <= both(*(median_error(m.starts) * _p50_s(m) for m in (one, two)))
        for one, two in pairs
    ]
    return float(np.mean(within)) * 100


def _agreement(goal: Goal, ours: Callable[[], float], theirs: Callable[[], float]) -> Iterator[Bar | Figure]:
    mine, their = interleave(_ROUNDS, ours, theirs)
    ratio = math.exp(log_ratio(their, mine, paired=True).middle)
    yield goal.measured([abs(ratio - 1) * 100])
    yield figure("  p50 over theirs, of each round", mine / their)
    yield figure("  theirs (ResNet-20, four images)", their * 1e3, "ms")


def _profiled(model: Model, interpreter: str) -> float:
    spec = ProfileSpec(interpreters=(interpreter,), starts=1, warmup_runs=_WARMUP, runs=_RUNS, energy=False)
    return _p50_s(profile_package(model.package, spec)[0])


def _p50_s(one: Measurement) -> float:
    return summarize(start.samples for start in one.starts).p50_ns / 1e9


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


PARTS = (
    Part((LITERT,), beside_litert_benchmark),
    Part((EXECUTORCH,), beside_executor_loop),
    Part((REPEATS,), repeats),
)
