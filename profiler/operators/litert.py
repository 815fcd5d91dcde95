"""Times operators on ai-edge-litert: LiteRT's own profiler, through the C interface of its library.

Python's classes do not reach the profiler. The library does, of a model that it compiles itself: with the same XNNPACK,
and the same options, as `runtime.sessions.compiled` does. Names and layouts are those of litert/c of LiteRT 2.3.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ferryman.profiler.operators.node import Node, match
from ferryman.profiler.operators.tflite_graph import Graph
from ferryman.profiler.operators.timed import WARM_UP_RUNS, Timed, middle_ns
from ferryman.runtime.contracts.errors import DeviceError, RuntimeFault
from ferryman.runtime.contracts.tensor import Array
from ferryman.runtime.sessions.compiled import INTERPRETER, chatter
from ferryman.runtime.sessions.tflite import natural

VERSIONS = ("2.3.",)
"""Those whose interface this is: with another, the library's answers would be misread."""
SOURCE = "LiteRT's own profiler, of a CompiledModel, to the microsecond"
_LIBRARY = "libLiteRt.so"
_CPU, _WRITE = 1, 1
_INVOKE, _OPERATOR, _DELEGATED, _INSIDE = 1, 2, 4, 8
"""Types of events."""
_RUNS_AT_ONCE = 8
_WHOLE = "Invoke"
_DIMS = 8


class _Type(ctypes.Structure):
    """LiteRtRankedTensorType: the rank is the lowest seven bits of `rank`."""

    _fields_ = (
        ("element", ctypes.c_int),
        ("rank", ctypes.c_uint32),
        ("dimensions", ctypes.c_int32 * _DIMS),
        ("strides", ctypes.c_uint32 * _DIMS),
    )


class _Event(ctypes.Structure):
    """ProfiledEventData."""

    _fields_ = (
        ("tag", ctypes.c_char_p),
        ("type", ctypes.c_int),
        ("start_us", ctypes.c_uint64),
        ("elapsed_us", ctypes.c_uint64),
        ("memory", ctypes.c_size_t * 6),
        ("index", ctypes.c_uint64),
        ("subgraph", ctypes.c_uint64),
        ("source", ctypes.c_int),
    )


def usable() -> bool:
    """Whether the installed version is one whose interface this is."""
    try:
        return metadata.version(INTERPRETER).startswith(VERSIONS)
    except metadata.PackageNotFoundError:
        return False


def time_litert(
    artifact: Path, graph: Graph, entry: str | None, inputs: Sequence[Array], *, threads: int, runs: int
) -> Timed:
    """Times of every operator.

    Raises:
        DeviceError: ai-edge-litert is not installed, or does not load.
        RuntimeFault: it fails, or its runs did not all do the same.
    """
    recorded: list[list[_Event]] = []
    with chatter(), ExitStack() as stack:
        model = _Model(_Library(), stack, artifact, entry, threads)
        model.fill(inputs)
        for _ in range(WARM_UP_RUNS):
            model.run()
        while len(recorded) < runs:
            several = min(_RUNS_AT_ONCE, runs - len(recorded))
            recorded += _split(model.record(several), several)
    return _join(recorded, graph)


class _Library:
    """Calls by name, without their prefix; a status other than 0 is raised."""

    def __init__(self) -> None:
        found = importlib.util.find_spec("ai_edge_litert")
        if found is None or found.origin is None:
            raise DeviceError(f"{INTERPRETER} is not installed")
        path = Path(found.origin).parent / _LIBRARY
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            raise DeviceError(f"{path} does not load: {error}") from error

    def __call__(self, name: str, *arguments: Any) -> None:  # noqa: ANN401  # whatever ctypes takes
        status = self._function(name)(*arguments)
        if status:
            raise RuntimeFault(f"{INTERPRETER}: LiteRt{name} failed with status {status}")

    def make(self, stack: ExitStack, kind: str, name: str, *arguments: Any) -> ctypes.c_void_p:  # noqa: ANN401
        """What a call gives as its last argument, destroyed with the stack; of no `kind`: somebody else's."""
        made = ctypes.c_void_p()
        self(name, *arguments, ctypes.byref(made))
        if kind:
            stack.callback(self._function(f"Destroy{kind}"), made)
        return made

    def count(self, name: str, of: ctypes.c_void_p) -> int:
        """What a call counts."""
        counted = ctypes.c_size_t()
        self(name, of, ctypes.byref(counted))
        return counted.value

    def _function(self, name: str) -> Any:  # noqa: ANN401
        try:
            return getattr(self._library, f"LiteRt{name}")
        except AttributeError as error:
            raise RuntimeFault(f"{INTERPRETER}: its {_LIBRARY} has no LiteRt{name}") from error


class _Model:
    """A compiled model with its profiler and buffers, which go with the stack."""

    def __init__(self, library: _Library, stack: ExitStack, artifact: Path, entry: str | None, threads: int) -> None:
        self._library = library
        self._stack = stack
        self._environment = library.make(stack, "Environment", "CreateEnvironment", 0, None)
        model = library.make(stack, "Model", "CreateModelFromFile", self._environment, str(artifact).encode())
        options = library.make(stack, "Options", "CreateOptions")
        library("SetOptionsHardwareAccelerators", options, _CPU)
        self._option(options, b"xnnpack", f"num_threads = {threads}\n")
        self._option(options, b"runtime_options_string", "enable_profiling = true\n")
        self._compiled = library.make(stack, "CompiledModel", "CreateCompiledModel", self._environment, model, options)
        self._signature, signature = self._choose(model, entry)
        self._inputs = self._buffers("Input", signature)
        self._outputs = self._buffers("Output", signature)
        self._profiler = library.make(stack, "", "CompiledModelGetProfiler", self._compiled)

    def _option(self, options: ctypes.c_void_p, identifier: bytes, text: str) -> None:
        """Hand over options in TOML, which the library frees with the C library's `free`."""
        c = ctypes.CDLL(None)
        c.strdup.restype = ctypes.c_void_p
        copied, free = ctypes.c_void_p(c.strdup(text.encode())), ctypes.cast(c.free, ctypes.c_void_p)
        held = self._library.make(self._stack, "", "CreateOpaqueOptions", identifier, copied, free)
        self._library("AddOpaqueOptions", options, held)

    def _choose(self, model: ctypes.c_void_p, entry: str | None) -> tuple[ctypes.c_size_t, ctypes.c_void_p]:
        for index in range(self._library.count("GetNumModelSignatures", model)):
            at = ctypes.c_size_t(index)
            signature = self._library.make(self._stack, "", "GetModelSignature", model, at)
            key = ctypes.c_char_p()
            self._library("GetSignatureKey", signature, ctypes.byref(key))
            if entry is None or (key.value or b"").decode() == entry:
                return at, signature
        raise RuntimeFault(f"{INTERPRETER}: the artifact has no signature {entry or ''}")

    def _buffers(self, kind: str, signature: ctypes.c_void_p) -> list[tuple[str, ctypes.c_void_p]]:
        """Names and buffers, in the library's order."""
        made = []
        for index in range(self._library.count(f"GetNumSignature{kind}s", signature)):
            at, name, found = ctypes.c_size_t(index), ctypes.c_char_p(), _Type()
            self._library(f"GetSignature{kind}Name", signature, at, ctypes.byref(name))
            tensor = self._library.make(self._stack, "", f"GetSignature{kind}TensorByIndex", signature, at)
            self._library("GetRankedTensorType", tensor, ctypes.byref(found))
            needs = self._library.make(
                self._stack, "", f"GetCompiledModel{kind}BufferRequirements", self._compiled, self._signature, at
            )
            create = "CreateManagedTensorBufferFromRequirements"
            arguments = (self._environment, ctypes.byref(found), needs)
            buffer = self._library.make(self._stack, "TensorBuffer", create, *arguments)
            made.append(((name.value or b"").decode(), buffer))
        return made

    def fill(self, inputs: Sequence[Array]) -> None:
        """Write the inputs, which are in the order of the signature's names."""
        ordered = sorted(self._inputs, key=lambda pair: natural(pair[0]))
        if len(ordered) != len(inputs):
            raise RuntimeFault(f"{INTERPRETER}: expected {len(ordered)} inputs, found {len(inputs)}")
        for (name, buffer), array in zip(ordered, inputs, strict=True):
            given = np.ascontiguousarray(array)
            size = self._library.count("GetTensorBufferPackedSize", buffer)
            if size != given.nbytes:
                raise RuntimeFault(f"{INTERPRETER}: {name} takes {size} bytes, and the input has {given.nbytes}")
            address = ctypes.c_void_p()
            self._library("LockTensorBuffer", buffer, ctypes.byref(address), _WRITE)
            ctypes.memmove(address, given.ctypes.data, size)
            self._library("UnlockTensorBuffer", buffer)

    def run(self) -> None:
        """One inference."""
        self._library(
            "RunCompiledModel",
            self._compiled,
            self._signature,
            *self._several(self._inputs),
            *self._several(self._outputs),
        )

    def _several(self, buffers: list[tuple[str, ctypes.c_void_p]]) -> tuple[ctypes.c_size_t, Any]:
        handles = (ctypes.c_void_p * len(buffers))(*(buffer for _, buffer in buffers))
        return ctypes.c_size_t(len(buffers)), handles

    def record(self, runs: int) -> list[_Event]:
        """The events of some runs."""
        self._library("ResetProfiler", self._profiler)
        self._library("StartProfiler", self._profiler)
        for _ in range(runs):
            self.run()
        self._library("StopProfiler", self._profiler)
        count = ctypes.c_int()
        self._library("GetNumProfilerEvents", self._profiler, ctypes.byref(count))
        events = (_Event * max(count.value, 1))()
        if count.value:
            self._library("GetProfilerEvents", self._profiler, count, events)
        kept = []
        for event in events[: count.value]:
            copied = _Event.from_buffer_copy(event)
            copied.tag = bytes(event.tag or b"")  # the library's own goes with its next record
            kept.append(copied)
        return kept


def _split(events: Sequence[_Event], runs: int) -> Iterator[list[_Event]]:
    """Events of each run: from its `Invoke` to the next one's."""
    starts = [at for at, event in enumerate(events) if event.type == _INVOKE and event.tag == _WHOLE.encode()]
    if len(starts) != runs:
        raise RuntimeFault(f"{INTERPRETER}: its profiler recorded {len(starts)} of {runs} runs")
    for start, end in zip(starts, [*starts[1:], len(events)], strict=True):
        yield [events[start], *(e for e in events[start:end] if e.type in (_OPERATOR, _DELEGATED, _INSIDE))]


def _join(recorded: Sequence[Sequence[_Event]], graph: Graph) -> Timed:
    first = [(event.type, event.tag, event.index) for event in recorded[0][1:]]
    if any([(event.type, event.tag, event.index) for event in run[1:]] != first for run in recorded):
        raise RuntimeFault(f"{INTERPRETER}: its runs did not all run the same operators, on the same inputs")
    plain = {index for kind, _, index in first if kind == _OPERATOR and index < len(graph.operators)}
    others = [replace(o.node, delegate="xnnpack") for i, o in enumerate(graph.operators) if i not in plain]
    inside = match([tag.decode() for kind, tag, _ in first if kind == _INSIDE], others)
    nodes: list[Node] = []
    for kind, tag, index in first:
        if kind == _INSIDE:
            nodes.append(next(inside))
        elif kind == _OPERATOR and index < len(graph.operators):
            nodes.append(graph.operators[index].node)
        else:
            nodes.append(Node(tag.decode(), "delegate", "xnnpack"))
    times = [[middle_ns(run[at].elapsed_us) for run in recorded] for at in range(1, len(first) + 1)]
    whole = [middle_ns(run[0].elapsed_us) for run in recorded]
    return Timed(SOURCE, list(zip(nodes, times, strict=True)), whole)
