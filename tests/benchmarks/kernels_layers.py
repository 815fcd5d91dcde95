"""Single layers as bits against fp32 and int8 on XNNPACK, through the same runtime, in one process, in turn."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ferryman.runtime import kernels
from ferryman.runtime.contracts.manifest import RuntimeName
from ferryman.runtime.session import Session, open_session
from tests.benchmarks.frame import Bar, CannotRun, Figure, Goal, Part, figure, interleave, progress, seconds_of

RUNTIMES: tuple[RuntimeName, ...] = ("executorch", "tflite")
NAMES = {"executorch": "ExecuTorch", "tflite": "LiteRT"}
_ROUNDS = 120
_CALLS = 4
"""Of a session in a row: the first finds what the others have left of the caches."""


@dataclass(frozen=True)
class Layer:
    """A layer, and how many times fp32's speed it is held to on AVX-512; None: a figure only."""

    name: str
    channels: int
    out: int
    size: int
    """Height and width of the image; 0: a linear layer."""
    target: float | None


LAYERS = (
    Layer("conv 3x3 256->256 at 14x14", 256, 256, 14, 14.0),
    Layer("conv 3x3 128->128 at 28x28", 128, 128, 28, 14.0),
    Layer("conv 3x3 64->64 at 56x56", 64, 64, 56, None),
    Layer("linear 1x4096x4096", 4096, 4096, 0, 25.0),
)
AVX2_TARGET = 5.0
AVX2_LAYERS = LAYERS[:2]


def goal(layer: Layer, runtime: str, isa: str, target: float) -> Goal:
    return Goal(f"{layer.name}, {isa}, times as fast as fp32 on {NAMES[runtime]}", ">=", target)


GOALS = {
    (layer, runtime, "avx512"): goal(layer, runtime, "avx512", layer.target)
    for layer in LAYERS
    for runtime in RUNTIMES
    if layer.target
} | {
    (layer, runtime, "avx2"): goal(layer, runtime, "avx2", AVX2_TARGET) for layer in AVX2_LAYERS for runtime in RUNTIMES
}


def measure() -> Iterator[Bar | Figure]:
    """Every layer on both runtimes, one thread."""
    with tempfile.TemporaryDirectory() as name:
        for layer in LAYERS:
            progress(f"{layer.name}: fp32, int8, binary")
            files = artifacts(layer, Path(name))
            for runtime in RUNTIMES:
                yield from _beside(layer, runtime, files, threads=1)


def measure_all_cores() -> Iterator[Figure]:
    """The first layer with as many threads as there are cores: ExecuTorch's pool, the delegate's own."""
    threads = len(os.sched_getaffinity(0))
    if threads == 1:
        raise CannotRun("there is one core")
    with tempfile.TemporaryDirectory() as name:
        layer = LAYERS[0]
        progress(f"{layer.name} on {threads} threads")
        files = artifacts(layer, Path(name))
        for runtime in RUNTIMES:
            with ExitStack() as stack:
                sessions = {
                    form: stack.enter_context(open_session(files[runtime, form], runtime, threads=threads))
                    for form in ("fp32", "binary")
                }
                fp32, binary = _timed(layer, sessions)
            where = f"{NAMES[runtime]}, {threads} threads"
            yield figure(f"{layer.name}, {where}, times as fast as fp32", fp32 / binary)


def _beside(
    layer: Layer, runtime: RuntimeName, files: dict[tuple[str, str], Path], *, threads: int
) -> Iterator[Bar | Figure]:
    with ExitStack() as stack:
        sessions = {
            form: stack.enter_context(open_session(files[runtime, form], runtime, threads=threads))
            for form in ("fp32", "int8", "binary")
        }
        for isa in kernels.isas():
            found = GOALS.get((layer, runtime, isa))
            if found is None and isa != kernels.isas()[0]:
                continue
            with using(isa):
                fp32, int8, binary = _timed(layer, sessions)
            yield (
                found.measured(fp32 / binary)
                if found
                else figure(f"{layer.name}, {isa}, times as fast as fp32 on {NAMES[runtime]}", fp32 / binary)
            )
            if isa == kernels.isas()[0]:
                where = f"  {layer.name} on {NAMES[runtime]}"
                yield figure(f"{where}: times as fast as int8", int8 / binary)
                yield figure(f"{where}: fp32", fp32 * 1e6, "us")
                yield figure(f"{where}: binary", binary * 1e6, "us")
    sizes = {form: files[runtime, form].stat().st_size for form in ("fp32", "binary")}
    yield figure(f"  {layer.name} on {NAMES[runtime]}: fp32 bytes over binary's", [sizes["fp32"] / sizes["binary"]])
    for (wanted, on, isa), one in GOALS.items():
        if wanted == layer and on == runtime and isa not in kernels.isas():
            yield one.not_run(f"this processor has no {isa}")


class using:  # noqa: N801  # reads as a verb
    """Runs the kernels on one instruction set, then on the best again."""

    def __init__(self, isa: str) -> None:
        self._isa, self._before = isa, kernels.isa()

    def __enter__(self) -> None:
        assert kernels.load().ferryman_kernels_use(self._isa.encode()) == 0

    def __exit__(self, *_: object) -> None:
        kernels.load().ferryman_kernels_use(self._before.encode())


def _timed(layer: Layer, sessions: dict[str, Session]) -> np.ndarray:
    """Seconds a call: [form, round]."""
    shape = (1, layer.channels, layer.size, layer.size) if layer.size else (1, layer.channels)
    floats = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)

    def timed(session: Session) -> Callable[[], float]:
        session.run([(30 * floats).astype(np.int8) if session.signature.inputs[0].dtype == "int8" else floats])
        # The runtime's own call, the input in place: copies into and out of a session are the same for every form.
        call = session._call

        def run() -> None:
            for _ in range(_CALLS):
                call()

        return lambda: seconds_of(run) / _CALLS

    calls = [timed(session) for session in sessions.values()]
    interleave(10, *calls)
    return interleave(_ROUNDS, *calls)


def artifacts(layer: Layer, folder: Path) -> dict[tuple[str, str], Path]:
    """The layer in every form for both runtimes: (runtime, form) -> file."""
    import torch

    from ferryman.converter.api import BinaryConv2d, BinaryLinear
    from ferryman.converter.backends import BACKENDS
    from ferryman.converter.capture import capture
    from ferryman.converter.lower_binary import lower_binary
    from ferryman.converter.quiet import quiet
    from ferryman.converter.source import make_source
    from tests.benchmarks.int8 import int8_pte, int8_tflite

    torch.manual_seed(0)
    if layer.size:
        dense: torch.nn.Module = torch.nn.Conv2d(layer.channels, layer.out, 3, padding=1)
        binary: torch.nn.Module = BinaryConv2d(layer.channels, layer.out, 3, padding=1)
        x = torch.randn(1, layer.channels, layer.size, layer.size)
    else:
        dense = torch.nn.Linear(layer.channels, layer.out)
        binary = BinaryLinear(layer.channels, layer.out)
        x = torch.randn(1, layer.channels)
    made = {}
    with quiet():
        captured = {
            "fp32": capture(make_source(dense.eval(), (x,))),
            "binary": lower_binary(capture(make_source(binary.eval(), (x,))))[0],
        }
        for runtime in RUNTIMES:
            for form, one in captured.items():
                path = folder / f"{form}{BACKENDS[runtime].suffix}"
                path.write_bytes(BACKENDS[runtime].lower(one).data)
                made[runtime, form] = path
        made["executorch", "int8"] = int8_pte(dense, x, folder / "int8.pte")
        made["tflite", "int8"] = int8_tflite(made["tflite", "fp32"], x, folder / "int8.tflite")
    return made


PARTS = (Part(tuple(GOALS.values()), measure), Part((), measure_all_cores))
