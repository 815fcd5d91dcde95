"""TFLite artifacts, on ai-edge-litert or tflite-runtime: the same flatbuffer, two generations of interpreter."""

from __future__ import annotations

import ctypes
import functools
import importlib
import mmap
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ferryman.runtime import kernels
from ferryman.runtime.cache import Cache, CacheUse
from ferryman.runtime.closing import Closing
from ferryman.runtime.contracts.errors import CallerError, DeviceError, RuntimeFault
from ferryman.runtime.contracts.tensor import Array, DynamicDim, Signature, TensorSpec
from ferryman.runtime.flatbuffer import BrokenError, Table
from ferryman.runtime.native_library import native_library
from ferryman.runtime.session import Session, exactly, fit

_MODULES = {
    "ai-edge-litert": "ai_edge_litert.interpreter",
    "tflite-runtime": "tflite_runtime.interpreter",
}
_DYNAMIC_MAX = 2**31 - 1
_FILE_IDENTIFIER = b"TFL3"
_DELEGATE = "libferryman_tflite.so"
_OWN_OPERATORS = b"ferryman."
_CODES, _CUSTOM_CODE = 1, 1
"""Fields `Model.operator_codes` and `OperatorCode.custom_code` of TFLite's schema.fbs."""
_NONE = (-1,)
"""A shape that no array has."""
_OPERATOR_CODES_MAX = 4096
"""More than any artifact has; a hostile count must not keep us."""


class TfliteSession(Closing):
    """Implements `Session`; tensors go in the order of the model's signature, `args_0, args_1, ...`.

    An entry is one of the model's signatures, and each has a subgraph of its own. Python's interpreters run others than
    the first by `SignatureRunner` alone, which allocates for every call; so the wrapper below both is what is called.
    """

    cache: CacheUse = "off"

    def __init__(self, artifact: Path, interpreter: str, threads: int, entry: str | None = None) -> None:
        """See `open_session`."""
        self.interpreter = interpreter
        module = load(interpreter)
        self.version = metadata.version(interpreter)
        own = _holds_own_operators(artifact)
        try:
            # Each interpreter has its own: it counts on the delegate to outlive it, and holds it for that.
            delegates = [_load_delegate(module, threads)] if own else []
            self._tflite: Any = module.Interpreter(
                model_path=str(artifact), num_threads=threads, experimental_delegates=delegates
            )
            entry = choose_entry(self._tflite.get_signature_list(), entry, artifact)
            inputs, outputs = _in_call_order(self._tflite, entry)
            self._places = [detail["index"] for detail in inputs]
            self._answers = [detail["index"] for detail in outputs]
            self._wanted = [(np.dtype(detail["dtype"]), tuple(int(d) for d in detail["shape"])) for detail in inputs]
            self._tflite.allocate_tensors()  # of the first subgraph, and lets the delegates take their parts of all
            self._wrapper: Any = self._tflite._interpreter  # noqa: SLF001
            self._subgraph: int = self._wrapper.GetSubgraphIndexFromSignature(entry) if entry else 0
            self._allocate()
        except (ValueError, RuntimeError) as error:
            raise RuntimeFault(f"{interpreter} {self.version}: {error}") from error
        self.signature = Signature(inputs=tuple(_spec(d) for d in inputs), outputs=tuple(_spec(d) for d in outputs))

    def _allocate(self) -> None:
        self._wrapper.AllocateTensors(self._subgraph)
        self._call: Any = functools.partial(self._wrapper.Invoke, self._subgraph)

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """See `Session.run`."""
        if self._tflite is None:
            raise CallerError("the session is closed; open it again")
        wrapper, subgraph = self._wrapper, self._subgraph
        arrays = inputs if exactly(inputs, self._wanted) else fit(inputs, self.signature)
        try:
            if arrays is not inputs and [a.shape for a in arrays] != [shape for _, shape in self._wanted]:
                self._resize(arrays)
            for place, array in zip(self._places, arrays):  # noqa: B905  # counted above; strict costs time
                wrapper.SetTensor(place, array, subgraph)
            self._call()
            return [wrapper.GetTensor(place, subgraph) for place in self._answers]
        except (ValueError, RuntimeError) as error:
            raise RuntimeFault(f"{self.interpreter} {self.version}: {error}") from error

    def _resize(self, arrays: Sequence[Array]) -> None:
        dtypes = [dtype for dtype, _ in self._wanted]
        self._wanted = [(dtype, _NONE) for dtype in dtypes]  # if it fails on the way, the next run must not trust it
        for place, array in zip(self._places, arrays, strict=True):
            shape = np.array(array.shape, dtype=np.int32)
            self._wrapper.ResizeInputTensor(place, shape, True, self._subgraph)  # True: strict
        self._allocate()
        self._wanted = [(dtype, array.shape) for dtype, array in zip(dtypes, arrays, strict=True)]

    def close(self) -> None:
        """See `Session.close`."""
        self._tflite = self._wrapper = self._call = None


def load(interpreter: str) -> ModuleType:
    """Import the interpreter.

    Raises:
        DeviceError: it is not installed, or does not load.
    """
    try:
        return importlib.import_module(_MODULES[interpreter])
    except ImportError as error:
        raise DeviceError(f"{interpreter} cannot be loaded on this device: {error}") from error


def open_session(
    artifact: Path, *, interpreter: str, threads: int, entry: str | None = None, cache: Cache | None = None
) -> Session:
    """Load a `.tflite` file.

    Args:
        artifact: the file.
        interpreter: ai-edge-litert or tflite-runtime.
        threads: at least 1.
        entry: key of one of its signatures; None: the first.
        cache: where ai-edge-litert's packed weights are kept from one start to the next.

    Raises:
        CallerError: no such entry; or see `kernels.load`, for an artifact with operators of ferryman's own.
        DeviceError: the interpreter is not installed, or what such operators need.
        RuntimeFault: it does not take the artifact.
    """
    if interpreter == "ai-edge-litert" and not _holds_own_operators(artifact):
        from ferryman.runtime.sessions import compiled

        session = compiled.open_session(artifact, threads=threads, entry=entry, cache=cache)
        if session is not None:
            return session
    return TfliteSession(artifact, interpreter, threads, entry)


def _holds_own_operators(artifact: Path) -> bool:
    with artifact.open("rb") as file:
        if file.read(8)[4:] != _FILE_IDENTIFIER:
            raise RuntimeFault(f"{artifact.name} is not a .tflite file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return has_own_operators(data)


def has_own_operators(data: mmap.mmap | bytes) -> bool:
    """Whether a `.tflite` file names operators of ferryman's; False for bytes that are no such file.

    Reads the names and no more: the file may be large, and pages that are touched count as memory.
    """
    try:
        codes = Table.root(data).tables(_CODES)
        return any(
            codes[i].bytes_of(_CUSTOM_CODE, len(_OWN_OPERATORS)) == _OWN_OPERATORS
            for i in range(min(len(codes), _OPERATOR_CODES_MAX))
        )
    except BrokenError:
        return False


def _load_delegate(module: ModuleType, threads: int) -> object:
    path = native_library(_DELEGATE)
    if path is None:
        raise DeviceError(
            f"the artifact holds operators of ferryman's own, and their {_DELEGATE} is not installed; "
            "install ferryman with pip, which builds it"
        )
    kernels.load()
    try:
        ctypes.CDLL(str(path))  # load_delegate would leave half an object behind when this fails
    except OSError as error:
        raise DeviceError(f"{path} does not load: {error}") from error
    return module.load_delegate(str(path), {"num_threads": threads})


def choose_entry(signatures: dict[str, Any], asked: str | None, artifact: Path) -> str | None:
    """The signature to run; None: the artifact has none, and its first subgraph is run.

    Raises:
        CallerError: there is no such signature.
    """
    if asked is None:
        return next(iter(signatures), None)
    if asked not in signatures:
        there = f"there are: {', '.join(signatures)}" if signatures else "its only one has no name"
        raise CallerError(f"{artifact}: no entry `{asked}`; {there}")
    return asked


def _in_call_order(interpreter: Any, entry: str | None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:  # noqa: ANN401
    """Input and output details; a signature sorts its names as text, which puts args_10 before args_2."""
    if entry is None:
        return interpreter.get_input_details(), interpreter.get_output_details()
    names = interpreter.get_signature_list()[entry]
    runner = interpreter.get_signature_runner(entry)
    return (
        _named(runner.get_input_details(), names["inputs"]),
        _named(runner.get_output_details(), names["outputs"]),
    )


def _named(details: dict[str, dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    return [{**details[name], "name": name} for name in sorted(names, key=natural)]


def natural(name: str) -> list[tuple[int, str]]:
    """A key to sort names by, in which args_2 comes before args_10."""
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
