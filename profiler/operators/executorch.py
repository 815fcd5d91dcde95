"""Times operators on ExecuTorch: its own events of every kernel, and XNNPACK's of everything inside the delegate."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ferryman.profiler.operators.etdump import Event, read_etdump
from ferryman.profiler.operators.node import Node, match, uncounted
from ferryman.profiler.operators.pte import Step, read_method
from ferryman.profiler.operators.timed import WARM_UP_RUNS, Timed, middle_ns
from ferryman.runtime.contracts.errors import RuntimeFault
from ferryman.runtime.contracts.manifest import Variant
from ferryman.runtime.contracts.tensor import Array, DynamicDim, Signature
from ferryman.runtime.sessions import executorch

_WHOLE, _KERNEL, _DELEGATE = "Method::execute", "OPERATOR_CALL", "DELEGATE_CALL"
SOURCE = "ExecuTorch's ETDump: kernels in nanoseconds, operators inside XNNPACK to the microsecond"
_NS = 1000
_RUNS_AT_ONCE = 16
"""Runs between two looks: a dump keeps all of its events in memory."""
Key = tuple[int, int, str]
"""Instruction; which event of its delegate, -1 for the instruction itself; name."""


def time_executorch(artifact: Path, variant: Variant, inputs: list[Array], *, threads: int, runs: int) -> Timed:
    """Times of every operator.

    Raises:
        RuntimeFault: ExecuTorch fails, or its runs did not all do the same.
    """
    with artifact.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        steps = read_method(data, variant.entry, variant.origins)
    recorded: list[list[Event]] = []
    with executorch.open_session(artifact, threads=threads, entry=variant.entry, etdump=True) as session:
        if not _at_bounds(session.signature, inputs):
            steps = {at: Step(uncounted(s.node), tuple(map(uncounted, s.inside))) for at, s in steps.items()}
        for _ in range(WARM_UP_RUNS):
            session.run(inputs)
        session.etdump()
        while len(recorded) < runs:
            for _ in range(min(_RUNS_AT_ONCE, runs - len(recorded))):
                session.run(inputs)
            recorded += read_etdump(session.etdump())
    return _join(recorded, steps)


def _at_bounds(signature: Signature, inputs: Sequence[Array]) -> bool:
    """Whether dimensions that vary are as large as they can be, which is what the artifact's shapes say."""
    bounds = [tuple(d.max if isinstance(d, DynamicDim) else d for d in spec.shape) for spec in signature.inputs]
    return bounds == [array.shape for array in inputs]


def _join(recorded: Sequence[Sequence[Event]], steps: dict[int, Step]) -> Timed:
    whole: list[int] = []
    times: dict[Key, list[int]] = {}
    for events in recorded:
        once = _times_of(events)
        whole.append(sum(event.duration_ns for event in events if event.name == _WHOLE and not event.inside))
        if times and times.keys() != once.keys():
            raise RuntimeFault("ExecuTorch's runs did not all run the same operators, on the same inputs")
        for key, time in once.items():
            times.setdefault(key, []).append(time)
    rows: list[tuple[Node, Sequence[int]]] = []
    for instruction in sorted({instruction for instruction, _, _ in times}):
        keys = sorted(key for key in times if key[0] == instruction)
        step = steps.get(instruction, Step(Node(keys[0][2], "unknown", None)))
        inside = [key for key in keys if key[1] >= 0]
        if inside:
            nodes = match([name for _, _, name in inside], step.inside)
            rows += [(node, times[key]) for node, key in zip(nodes, inside, strict=True)]
            rows += [(_around(step.node), times[key]) for key in keys if key[1] < 0]
        else:
            rows += [(step.node, times[key]) for key in keys]
    return Timed(SOURCE, rows, whole)


def _around(delegate: Node) -> Node:
    """What a call of a delegate takes besides its operators: handing tensors over and back."""
    return replace(delegate, name=f"{delegate.name}, besides its operators", kind="delegate_call", macs=0)


def _times_of(events: Sequence[Event]) -> dict[Key, int]:
    """Of one run; what a loop runs several times is added up."""
    found: dict[Key, int] = {}
    places: dict[int, int] = {}
    within: dict[int, int] = {}
    for event in events:
        if event.inside:
            place = places.get(event.instruction, 0)
            places[event.instruction] = place + 1
            key = (event.instruction, place, event.name)
        elif event.name == _DELEGATE:
            places[event.instruction] = 0
            key = (event.instruction, -1, event.name)
        elif event.name == _KERNEL:
            key = (event.instruction, -1, event.name)
        else:  # the same once more, or no operator
            continue
        time_ns = event.duration_ns
        if event.inside:
            time_ns = middle_ns(event.duration_ns // _NS)
            within[event.instruction] = within.get(event.instruction, 0) + time_ns
        elif event.name == _DELEGATE:
            time_ns = max(0, time_ns - within.pop(event.instruction, 0))
        found[key] = found.get(key, 0) + time_ns
    return found
