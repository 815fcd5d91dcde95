"""The native ExecuTorch session: against a bare C loop, and against ExecuTorch's own Python module."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ferryman.runtime.sessions import executorch
from ferryman.runtime.sessions.executorch import ExecutorchSession
from tests.benchmarks.frame import Bar, CannotRun, Figure, Goal, Part, figure, interleave, progress, seconds_of

TINY = Path(__file__).parents[1] / "golden" / "pte" / "linear.pte"
OVERHEAD = Goal("session call over the bare C call", "<", 5.0, "us")
LATENCY = Goal(".pte latency, session over executorch's Python module", "<=", 1.02)

# Writes the input and runs, as a C program would; the address of ferryman_et_run comes from Python.
BARE = r"""
#include <cstdint>
#include <cstring>
extern "C" int bare(int (*run)(void*, const int32_t*, int32_t*), void* session, void* input, const void* data,
                    size_t bytes, int calls) {
  int failures = 0;
  for (int i = 0; i < calls; i++) {
    std::memcpy(input, data, bytes);
    failures += run(session, nullptr, nullptr) != 0;
  }
  return failures;
}
"""
_CALLS = 2000


def overhead() -> Iterator[Bar | Figure]:
    """What a call through Python costs beyond the same call in C: input and output copies, checks, ctypes."""
    progress("session call overhead")
    with tempfile.TemporaryDirectory() as folder, executorch.open_session(TINY, threads=1) as session:
        bare = _bare_loop(Path(folder))
        port = session._inputs[0]
        x = np.ones(port.bounds, port.dtype)
        run = ctypes.cast(session._native.run, ctypes.c_void_p)
        arguments = (run, session._handle, port.view.ctypes.data, x.ctypes.data, x.nbytes, _CALLS)

        def in_c() -> None:
            assert bare(*arguments) == 0

        def in_python() -> None:
            for _ in range(_CALLS):
                session.run([x])

        interleave(3, lambda: seconds_of(in_python), lambda: seconds_of(in_c))
        ours, base = interleave(50, lambda: seconds_of(in_python), lambda: seconds_of(in_c)) / _CALLS * 1e6
    yield OVERHEAD.measured(ours - base)
    yield figure("  the bare C call (a 4x4 linear)", base, "us")


def _bare_loop(folder: Path) -> ctypes._NamedFuncPointer:
    source, library = folder / "bare.cpp", folder / "bare.so"
    source.write_text(BARE)
    try:
        subprocess.run(["g++", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
    except FileNotFoundError:
        raise CannotRun("g++ is not installed: apt-get install g++") from None
    bare = ctypes.CDLL(str(library)).bare
    pointer = ctypes.c_void_p
    bare.argtypes = (pointer, pointer, pointer, pointer, ctypes.c_size_t, ctypes.c_int)
    return bare


def latency() -> list[Bar | Figure]:
    """ResNet-20, four images a call, one thread each, in one process, a call of each in turn."""
    progress("latency beside executorch's own Python module")
    from ferryman.converter.quiet import quiet

    with tempfile.TemporaryDirectory() as folder, quiet():
        pte = Path(folder) / "resnet20.pte"
        image = _resnet20(pte)
        with executorch.open_session(pte, threads=1) as session:
            return list(_beside(session, pte, image))


def _resnet20(pte: Path) -> np.ndarray:
    from ferryman.converter.backends.executorch import ExecutorchBackend
    from ferryman.converter.capture import capture
    from ferryman.converter.source import make_source
    from tests.zoo.models import resnet20

    module, inputs = resnet20()
    pte.write_bytes(ExecutorchBackend().lower(capture(make_source(module, inputs))).data)
    return inputs[0].numpy()


def _beside(session: ExecutorchSession, pte: Path, image: np.ndarray) -> Iterator[Bar | Figure]:
    import torch
    from executorch.extension.pybindings.portable_lib import _threadpool_get_thread_count, _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    _unsafe_reset_threadpool(1)
    assert _threadpool_get_thread_count() == 1
    program = Runtime.get().load_program(pte)
    method = program.load_method("forward")
    tensor = torch.from_numpy(image)
    np.testing.assert_array_equal(session.run([image])[0], method.execute([tensor])[0].numpy())
    measures = (lambda: seconds_of(lambda: session.run([image])), lambda: seconds_of(lambda: method.execute([tensor])))
    interleave(20, *measures)
    ours, theirs = interleave(400, *measures)
    yield LATENCY.measured(ours / theirs)
    yield figure("  through the session", ours * 1e3, "ms")
    yield figure("  through executorch's Python module", theirs * 1e3, "ms")


PARTS = (Part((OVERHEAD,), overhead), Part((LATENCY,), latency))
