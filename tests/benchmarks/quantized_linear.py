"""A 4-bit linear layer, 1x4096x4096 in groups of 32, beside fp32 on XNNPACK: both runtimes, one thread."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch

from ferryman.converter.backends import BACKENDS
from ferryman.converter.capture import capture
from ferryman.converter.forms import find_form
from ferryman.converter.quantize.recipe import Recipe
from ferryman.converter.quiet import quiet
from ferryman.converter.source import make_source
from ferryman.runtime.session import open_session
from tests.benchmarks.frame import Bar, Figure, Goal, Part, figure, progress
from tests.benchmarks.kernels_layers import NAMES, RUNTIMES
from tests.benchmarks.quantized_networks import timed

SIZE = 4096
_BITS = {"int8": 8, "4bit": 4, "2bit": 2}
FASTER = {
    runtime: Goal(f"linear 1x{SIZE}x{SIZE}, 4-bit, times as fast as fp32 on {NAMES[runtime]}", ">=", 5.0)
    for runtime in RUNTIMES
}
FEWER = {
    runtime: Goal(f"linear 1x{SIZE}x{SIZE}, 2-bit, time over 4-bit's on {NAMES[runtime]}", "<=", 1.0)
    for runtime in RUNTIMES
}


def measure() -> Iterator[Bar | Figure]:
    """One layer in every form on both runtimes."""
    torch.manual_seed(0)
    module, x = torch.nn.Sequential(torch.nn.Linear(SIZE, SIZE)).eval(), torch.randn(1, SIZE)
    with tempfile.TemporaryDirectory() as folder:
        progress(f"linear 1x{SIZE}x{SIZE}: lowering")
        with quiet():
            captured = capture(make_source(module, (x,)))
            programs = {"fp32": captured}
            for form, bits in _BITS.items():
                # Named, for what reads a model's input would have 8 bits.
                recipe = Recipe(bits=bits, group=32, layers={"0": bits})  # type: ignore[arg-type,dict-item]  # bits
                programs[form] = find_form(recipe).rewrite(captured, [captured.example])[0]
        for runtime in RUNTIMES:
            progress(f"linear on {NAMES[runtime]}")
            with ExitStack() as stack, quiet():
                sessions = {}
                for form, program in programs.items():
                    path = Path(folder) / f"{form}{BACKENDS[runtime].suffix}"
                    path.write_bytes(BACKENDS[runtime].lower(program).data)
                    sessions[form] = stack.enter_context(open_session(path, runtime, threads=1))
                times = dict(zip(sessions, timed(list(sessions.values()), x.numpy()), strict=True))
            yield FASTER[runtime].measured(times["fp32"] / times["4bit"])
            yield FEWER[runtime].measured(times["2bit"] / times["4bit"])
            for form, seconds in times.items():
                yield figure(f"  linear on {NAMES[runtime]}: {form}", seconds * 1e6, "us")


PARTS = (Part((*FASTER.values(), *FEWER.values()), measure),)
