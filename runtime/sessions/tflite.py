"""TFLite artifacts, on ai-edge-litert or tflite-runtime: the same flatbuffer, two generations of interpreter."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ferryman.runtime.closing import Closing
from ferryman.runtime.contracts.errors import DeviceError, RuntimeFault
from ferryman.runtime.contracts.tensor import Array, DynamicDim, Signature, TensorSpec
from ferryman.runtime.session import fit

_MODULES = {
    "ai-edge-litert": "ai_edge_litert.interpreter",
    "tflite-runtime": "tflite_runtime.interpreter",
}
_DYNAMIC_MAX = 2**31 - 1
_FILE_IDENTIFIER = b"TFL3"


class TfliteSession(Closing):
    """Implements `Session`; tensors go in the order of the model's signature, `args_0, args_1, ...`."""

    def __init__(self, artifact: Path, interpreter: str, threads: int) -> None:
        self.interpreter = interpreter
        module = load(interpreter)
        self.version = metadata.version(interpreter)
        with artifact.open("rb") as file:
            if file.read(8)[4:] != _FILE_IDENTIFIER:
                raise RuntimeFault(f"{artifact.name} is not a .tflite file")
        try:
            self._tflite: Any = module.Interpreter(model_path=str(artifact), num_threads=threads)
            self._inputs, self._outputs = _in_call_order(self._tflite)
            self._shapes = [tuple(int(d) for d in detail["shape"]) for detail in self._inputs]
            self._allocate()
        except (ValueError, RuntimeError) as error:
            raise RuntimeFault(f"{interpreter} {self.version}: {error}") from error
        self.signature = Signature(
            inputs=tuple(_spec(d) for d in self._inputs), outputs=tuple(_spec(d) for d in self._outputs)
        )

    def _allocate(self) -> None:
        self._tflite.allocate_tensors()
        # A view keeps the interpreter's buffer addresses, so it must be taken anew after each allocation.
        self._invoke = self._tflite.invoke

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """See `Session.run`."""
        arrays = fit(inputs, self.signature)
        try:
            if any(a.shape != s for a, s in zip(arrays, self._shapes, strict=True)):
                self._resize(arrays)
            for detail, array in zip(self._inputs, arrays, strict=True):
                self._tflite.set_tensor(detail["index"], array)
            self._invoke()
            return [self._tflite.get_tensor(detail["index"]) for detail in self._outputs]
        except (ValueError, RuntimeError) as error:
            raise RuntimeFault(f"{self.interpreter} {self.version}: {error}") from error

    def _resize(self, arrays: Sequence[Array]) -> None:
        for detail, array in zip(self._inputs, arrays, strict=True):
            self._tflite.resize_tensor_input(detail["index"], array.shape, strict=True)
        self._allocate()
        self._shapes = [a.shape for a in arrays]

    def close(self) -> None:
        """See `Session.close`."""
        self._tflite = self._invoke = None


def load(interpreter: str) -> ModuleType:
    """Import the interpreter.

    Raises:
        DeviceError: it is not installed, or does not load.
    """
    try:
        return importlib.import_module(_MODULES[interpreter])
    except ImportError as error:
        raise DeviceError(f"{interpreter} cannot be loaded on this device: {error}") from error


def open_session(artifact: Path, *, interpreter: str, threads: int) -> TfliteSession:
    """Load a `.tflite` file.

    Raises:
        DeviceError: the interpreter is not installed.
        RuntimeFault: it does not take the artifact.
    """
    return TfliteSession(artifact, interpreter, threads)


def _in_call_order(interpreter: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:  # noqa: ANN401
    """Input and output details; a signature sorts its names as text, which puts args_10 before args_2."""
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    signatures = interpreter.get_signature_list()
    if len(signatures) != 1:
        return inputs, outputs
    key, names = next(iter(signatures.items()))
    runner = interpreter.get_signature_runner(key)
    return (
        _named(runner.get_input_details(), names["inputs"]),
        _named(runner.get_output_details(), names["outputs"]),
    )


def _named(details: dict[str, dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    return [{**details[name], "name": name} for name in sorted(names, key=_natural)]


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _spec(detail: dict[str, Any]) -> TensorSpec:
    declared = detail.get("shape_signature", detail["shape"])
    return TensorSpec(
        name=detail["name"],
        dtype=np.dtype(detail["dtype"]).name,
        shape=tuple(
            int(d) if d >= 0 else DynamicDim(symbol=f"{detail['name']}.{axis}", min=1, max=_DYNAMIC_MAX)
            for axis, d in enumerate(declared)
        ),
    )
