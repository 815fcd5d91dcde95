"""What measuring costs: the profiler's loop over a bare one, and a session's Python over the interpreters' own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ferryman.profiler.busy import Busy
from ferryman.profiler.steady import timed_runs
from ferryman.runtime.sessions import compiled, executorch
from ferryman.runtime.sessions.compiled import CompiledSession
from ferryman.runtime.sessions.tflite import TfliteSession
from tests.benchmarks.frame import Bar, Figure, Goal, Part, figure, interleave, progress, seconds_of
from tests.benchmarks.profiler_models import resnet20

GOLDEN = Path(__file__).parents[1] / "golden"
TFLITE, PTE = GOLDEN / "add_one.tflite", GOLDEN / "pte" / "linear.pte"
PROFILING = Goal("p50 changed by profiling", "<", 1.0, "%")
LITERT = Goal("LiteRT session over Interpreter's own calls", "<", 5.0, "us")
COMPILED = Goal("LiteRT session over CompiledModel's own calls", "<", 5.0, "us")
EXECUTORCH = Goal("ExecuTorch session over executorch's own execute", "<", 2.0, "us")
_ROUNDS, _CALLS = 100, 1000
_RUNS = 40


def profiling() -> Iterator[Bar | Figure]:
    """Blocks of runs of ResNet-20 in turn: in the profiler's loop with all it does around it, and with no more than
    a clock before and after each run.
    """
    progress("p50 while profiling, beside p50 in a bare loop")
    model = resnet20()
    with TfliteSession(model.tflite, "ai-edge-litert", 1) as session:
        inputs = [model.image]

        def bare() -> float:
            took = []
            for _ in range(_RUNS):
                begin = time.perf_counter()
                session.run(inputs)
                took.append(time.perf_counter() - begin)
            return float(np.median(took))

        def profiled() -> float:
            busy = Busy()
            samples_ns = timed_runs(lambda: session.run(inputs), _RUNS)
            busy.share()
            return float(np.median(samples_ns)) / 1e9

        interleave(5, bare, profiled)
        plain, measured = interleave(_ROUNDS, bare, profiled)
    yield PROFILING.measured([abs(float(np.median(measured / plain)) - 1) * 100])
    yield figure("  p50 while profiling over p50 in a bare loop, of each round", measured / plain)
    yield figure("  p50 in a bare loop (ResNet-20, four images)", plain * 1e3, "ms")


def sessions_of_litert() -> Iterator[Bar | Figure]:
    """A network of one addition: what remains is what calls cost."""
    progress("sessions of LiteRT beside its own calls")
    x = np.ones((1, 4), np.float32)
    module = compiled.load()[0]
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(TFLITE), num_threads=1)
    interpreter.allocate_tensors()
    place, answer = (d[0]["index"] for d in (interpreter.get_input_details(), interpreter.get_output_details()))

    def raw() -> object:
        interpreter.set_tensor(place, x)
        interpreter.invoke()
        return interpreter.get_tensor(answer)

    with TfliteSession(TFLITE, "ai-edge-litert", 1) as session:
        yield from _over(LITERT, lambda: session.run([x]), raw)
    model = module.CompiledModel.from_file(
        str(TFLITE), environment=compiled.load()[1], hardware_accel=module.HardwareAccelerator.CPU
    )
    inputs, outputs = model.create_input_buffers(0), model.create_output_buffers(0)

    def raw_compiled() -> object:
        inputs[0].write(x)
        model.run_by_index(0, inputs, outputs)
        return outputs[0].read(4, np.float32)

    with CompiledSession(TFLITE, 1, None, "") as kept:
        yield from _over(COMPILED, lambda: kept.run([x]), raw_compiled)


def session_of_executorch() -> Iterator[Bar | Figure]:
    """A 4x4 linear: with arrays through the session, with tensors through executorch's own Python module."""
    progress("session of ExecuTorch beside executorch's own Python module")
    import torch
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    _unsafe_reset_threadpool(1)
    program = Runtime.get().load_program(PTE)
    method = program.load_method("forward")
    x = np.ones((1, 4), np.float32)
    tensor = torch.from_numpy(x)
    with executorch.open_session(PTE, threads=1) as session:
        np.testing.assert_allclose(session.run([x])[0], method.execute([tensor])[0].numpy(), rtol=1e-5)
        yield from _over(EXECUTORCH, lambda: session.run([x]), lambda: method.execute([tensor]))


def _over(goal: Goal, ours: Callable[[], object], theirs: Callable[[], object]) -> Iterator[Bar | Figure]:
    """The difference of a call, of each round."""

    def loop(call: Callable[[], object]) -> Callable[[], float]:
        def run() -> None:
            for _ in range(_CALLS):
                call()

        return lambda: seconds_of(run)

    interleave(5, loop(ours), loop(theirs))
    mine, their = interleave(_ROUNDS, loop(ours), loop(theirs)) / _CALLS * 1e6
    yield goal.measured(mine - their)
    yield figure(f"  {goal.name.partition(' over ')[2]}", their, "us")


PARTS = (
    Part((LITERT, COMPILED), sessions_of_litert),
    Part((EXECUTORCH,), session_of_executorch),  # torch is in the process from here on
    Part((PROFILING,), profiling),
)
