"""A conversion to both runtimes against the bare calls of the toolchains, in one process, warmed up, in turn."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.frame import Bar, Figure, Goal, Part, figure, interleave, progress, seconds_of

CONVERT = Goal("convert without verification over the bare toolchains", "<=", 1.15)
_ROUNDS = 7


def measure() -> Iterator[Bar | Figure]:
    """Convert the demo's small network, where what ferryman adds weighs most.

    What proves the artifacts (running eager, the interpreters) counts apart.
    """
    progress("convert beside the bare toolchains")
    import torch

    from ferryman.converter.quiet import quiet
    from tests.e2e.digits import Digits

    module, inputs = Digits().eval(), (torch.rand(1, 1, 8, 8),)
    stages: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name, quiet():
        folder = Path(name)

        def ours() -> float:
            gc.collect()
            seconds, proving_s = _ferryman(module, inputs, folder, stages)
            return seconds - proving_s

        def bare() -> float:
            gc.collect()
            return seconds_of(lambda: _toolchains(module, inputs, folder))

        interleave(1, ours, bare)
        stages.clear()
        with_ferryman, without = interleave(_ROUNDS, ours, bare)
    yield CONVERT.measured(with_ferryman / without)
    yield figure("  convert, without verification", with_ferryman, "s")
    yield figure("  the bare toolchains", without, "s")
    for stage in stages[0]:
        yield figure(f"  stage: {stage}", [one[stage] for one in stages], "s")


def _ferryman(module, inputs, folder: Path, stages: list[dict[str, float]]) -> tuple[float, float]:
    from ferryman.converter.api import convert

    made = []
    seconds = seconds_of(lambda: made.append(convert(module, inputs, output=folder, name="digits")))
    stages.append(made[0].seconds)
    return seconds, sum(took for stage, took in made[0].seconds.items() if stage.startswith(("run eager", "verify ")))


def _toolchains(module, inputs, folder: Path) -> None:
    """What their own documentation says to call."""
    import litert_torch
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.export(module, inputs)
    edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    (folder / "bare.pte").write_bytes(edge.to_executorch().buffer)
    litert_torch.convert(module, inputs).export(str(folder / "bare.tflite"))


PARTS = (Part((CONVERT,), measure),)
