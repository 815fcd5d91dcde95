"""Times operators of `.tflite` artifacts: LiteRT's own events where they can be had, else each operator alone."""

from __future__ import annotations

import mmap
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ferryman.profiler.operators import litert
from ferryman.profiler.operators.node import uncounted
from ferryman.profiler.operators.slices import given, numbers_in, slice_head
from ferryman.profiler.operators.tflite_graph import Graph, read_tflite
from ferryman.profiler.operators.timed import WARM_UP_RUNS, Timed
from ferryman.runtime.contracts.errors import RuntimeFault
from ferryman.runtime.contracts.manifest import Variant
from ferryman.runtime.contracts.tensor import Array
from ferryman.runtime.delegated import delegated_nodes
from ferryman.runtime.session import fit
from ferryman.runtime.sessions import compiled
from ferryman.runtime.sessions.tflite import TfliteSession

_TOLD = 0.6
SOURCE = "each operator alone, a graph of its own in the same interpreter, with its real inputs; all take turns"


def time_tflite(
    artifact: Path, variant: Variant, interpreter: str, inputs: list[Array], *, threads: int, runs: int
) -> Timed:
    """Times of every operator.

    Raises:
        DeviceError: the interpreter is not installed, or does not load.
        RuntimeFault: it fails, or the artifact cannot be cut into operators.
    """
    with artifact.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        graph = read_tflite(data, variant.entry, variant.origins)
        arrays = fit(inputs, variant.signature)
        if graph.shapes != tuple(array.shape for array in arrays):
            operators = tuple(replace(one, node=uncounted(one.node)) for one in graph.operators)
            graph = replace(graph, operators=operators)
        if interpreter == compiled.INTERPRETER and litert.usable() and not graph.own and not graph.dynamic:
            timed = litert.time_litert(artifact, graph, variant.entry, arrays, threads=threads, runs=runs)
            if _tell(timed):
                return timed
        head = slice_head(data, graph)
    with tempfile.TemporaryDirectory(prefix="ferryman-operators-") as folder:
        path = Path(folder) / artifact.name
        with path.open("wb") as whole, artifact.open("rb") as file:
            whole.write(head)
            while part := file.read(1 << 20):
                whole.write(part)
        with TfliteSession(path, interpreter, threads) as session:
            return _Slices(session, graph, arrays).time(runs)


def _tell(timed: Timed) -> bool:
    """Whether operators take long enough for whole microseconds to tell them apart: together most of a run."""
    return sum(median(times) for _, times in timed.rows) > _TOLD * median(timed.whole)


class _Slices:
    """The operators of an open session whose last subgraphs they are; its first is the whole."""

    def __init__(self, session: TfliteSession, graph: Graph, inputs: Sequence[Array]) -> None:
        self._wrapper: Any = session._tflite._interpreter  # noqa: SLF001  # Python's classes run the first subgraph alone
        self._name = session.interpreter
        self._graph = graph
        taken = delegated_nodes(session._tflite._get_ops_details())  # noqa: SLF001  # no public way
        self._nodes = [
            replace(operator.node, delegate="xnnpack")
            if operator.node.delegate is None and index in taken
            else operator.node
            for index, operator in enumerate(graph.operators)
        ]
        self._first = graph.subgraphs
        self._prepare(inputs)

    def _prepare(self, inputs: Sequence[Array]) -> None:
        """Give the whole its inputs, and each operator those and what the operators before it answer."""
        operators = self._graph.operators
        self._give(0, self._graph.inputs, inputs)
        values = dict(zip(self._graph.inputs, inputs, strict=True))
        needed = [given(self._graph, index) for index in range(len(operators))]
        last = {tensor: index for index, tensors in enumerate(needed) for tensor in tensors}
        for index, operator in enumerate(operators):
            at, places = self._first + index, numbers_in(operator)
            written = [tensor for tensor in operator.outputs if tensor >= 0]
            try:
                self._give(at, [places[i] for i in needed[index]], [values[i] for i in needed[index]])
                self._wrapper.Invoke(at)
                answers = [self._wrapper.GetTensor(places[tensor], at) for tensor in written]
            except (ValueError, RuntimeError, KeyError) as error:
                raise RuntimeFault(
                    f"{self._name}: operator {index}, {operator.node.name}, does not run alone: {error}"
                ) from error
            values.update(zip(written, answers, strict=True))
            for tensor in needed[index]:
                if last[tensor] == index:
                    del values[tensor]

    def _give(self, at: int, places: Sequence[int], arrays: Sequence[Array]) -> None:
        """Lay a subgraph out for its inputs, and write them."""
        if self._graph.dynamic:
            for place, array in zip(places, arrays, strict=True):
                self._wrapper.ResizeInputTensor(int(place), np.array(array.shape, np.int32), False, at)
        self._wrapper.AllocateTensors(at)
        for place, array in zip(places, arrays, strict=True):
            self._wrapper.SetTensor(int(place), array, at)

    def time(self, runs: int) -> Timed:
        """All of them in turn, the whole first.

        As in a whole run, an operator finds its weights where those of all others have passed since, and its inputs and
        outputs in the caches: they are read just before.
        """
        places = [list(numbers_in(operator).items()) for operator in self._graph.operators]
        near = [
            [
                partial(self._wrapper.GetTensor, place, self._first + at)
                for tensor, place in there
                if self._moves(tensor)
            ]
            for at, there in enumerate(places)
        ]
        calls = [partial(self._wrapper.Invoke, at) for at in (0, *range(self._first, self._first + len(near)))]
        times: list[list[int]] = [[] for _ in calls]
        clock = time.perf_counter_ns
        for turn in range(WARM_UP_RUNS + runs):
            for call, reads, taken in zip(calls, [[], *near], times, strict=True):
                for read in reads:
                    read()
                begin = clock()
                call()
                took = clock() - begin
                if turn >= WARM_UP_RUNS:
                    taken.append(took)
        whole, *each = times
        together = sum(median(one) for one in each) / max(median(whole), 1)
        rows = list(zip(self._nodes, each, strict=True))
        return Timed(f"{SOURCE}; together they take {together:.2f} of a whole run", rows, whole)

    def _moves(self, tensor: int) -> bool:
        return tensor not in self._graph.constant
