"""The layers run: what every layer of the deployed artifact holds, over many inputs, on the device.

A copy of the artifact is made in which intermediate tensors are outputs as well, and the interpreter runs that: same
weights, same kernels and delegates, and the same answers, which is checked. Only where a runtime fuses two operators it
may not any more: what lies between them is to be seen.
"""

from __future__ import annotations

import mmap
import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ferryman.profiler.layers import pte, tflite
from ferryman.profiler.layers.exposed import Exposed
from ferryman.profiler.layers.inputs import read_inputs
from ferryman.profiler.layers.statistics import Running
from ferryman.runtime.compare import compare, worst
from ferryman.runtime.contracts.errors import CallerError, DeviceError
from ferryman.runtime.contracts.layers import LayerStatistics
from ferryman.runtime.contracts.manifest import RuntimeName, Variant
from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.contracts.tensor import Array
from ferryman.runtime.isolated import IsolatedSession

__all__ = ["layer_statistics", "read_inputs"]

OUTPUTS_MIN_DB = 60.0
"""A copy that answers less alike shows another model's layers."""
_COMPARED_MAX = 8
_EXPOSE: dict[RuntimeName, Callable[[mmap.mmap, str | None, Mapping[str, str]], Exposed]] = {
    "executorch": pte.expose,
    "tflite": tflite.expose,
}


def layer_statistics(
    artifact: Path, variant: Variant, interpreter: str, inputs: Sequence[list[Array]], *, threads: int
) -> LayerStatistics | Unavailable:
    """Run the artifact on every input set, and tell what its layers held.

    Args:
        artifact: of the variant.
        variant: as the manifest has it.
        interpreter: one that runs it.
        inputs: input sets; information is told from two on, and more the more there are.
        threads: of the interpreter.

    Raises:
        CallerError: no input set, or one that does not fit; or the artifact lacks the variant's entry.
    """
    if not inputs:
        raise CallerError("statistics of layers are over at least one input set")
    try:
        with artifact.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            exposed = _EXPOSE[variant.runtime](data, variant.entry, variant.origins)
            if not exposed.values:
                return Unavailable(reason=f"the artifact shows no intermediate tensor: {'; '.join(exposed.left_out)}")
            with tempfile.TemporaryDirectory(prefix="ferryman-layers-") as folder:
                shown = Path(folder) / artifact.name
                with shown.open("wb") as copied:
                    copied.writelines((exposed.front, data, exposed.tail))
                return _run(artifact, shown, variant, interpreter, exposed, inputs, threads)
    except (ValueError, LookupError, struct.error) as error:
        return Unavailable(reason=f"its layers cannot be shown: {error}")
    except (OSError, DeviceError) as error:
        return Unavailable(reason=f"a copy that shows its layers does not run: {error}")


def _run(
    artifact: Path,
    shown: Path,
    variant: Variant,
    interpreter: str,
    exposed: Exposed,
    inputs: Sequence[list[Array]],
    threads: int,
) -> LayerStatistics | Unavailable:
    layers = [Running(value, len(inputs)) for value in exposed.values]
    own = len(variant.signature.outputs)
    answers: list[list[Array]] = []
    with IsolatedSession(
        shown, variant.runtime, interpreter=interpreter, threads=threads, entry=variant.entry
    ) as session:
        for one in inputs:
            outputs = session.run(one)
            for layer, place in zip(layers, exposed.outputs, strict=True):
                layer.take(outputs[place])
            if len(answers) < _COMPARED_MAX:
                answers.append(outputs[:own])
    outputs_db = _likeness(artifact, variant, interpreter, inputs[: len(answers)], answers, threads)
    if outputs_db < OUTPUTS_MIN_DB:
        return Unavailable(
            reason=f"the copy that shows its layers answers otherwise than the artifact ({outputs_db:.0f} dB)"
        )
    return LayerStatistics(
        source=f"{interpreter}, a copy of the artifact with every visible tensor as an output",
        inputs=len(inputs),
        rows=tuple(layer.record() for layer in layers),
        information_max_bits=float(np.log2(len({b"".join(a.tobytes() for a in one) for one in inputs}))),
        outputs_db=outputs_db,
        left_out=exposed.left_out,
    )


def _likeness(
    artifact: Path,
    variant: Variant,
    interpreter: str,
    inputs: Sequence[list[Array]],
    answers: Sequence[list[Array]],
    threads: int,
) -> float:
    """The least, over the inputs, of how alike the artifact answers."""
    with IsolatedSession(
        artifact, variant.runtime, interpreter=interpreter, threads=threads, entry=variant.entry
    ) as session:
        return min(
            worst(compare(session.run(one), answer)).sqnr_db for one, answer in zip(inputs, answers, strict=True)
        )
