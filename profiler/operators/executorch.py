"""Times operators on ExecuTorch: its own events of every kernel, and XNNPACK's of everything inside the delegate."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path

from ferryman.profiler.operators.etdump import Event, read_etdump
from ferryman.profiler.operators.node import Node, match
from ferryman.profiler.operators.pte import Step, read_method
from ferryman.profiler.operators.timed import WARM_UP_RUNS, Timed
from ferryman.runtime.contracts.errors import RuntimeFault
from ferryman.runtime.contracts.manifest import Variant
from ferryman.runtime.contracts.tensor import Array
from ferryman.runtime.sessions import executorch

_WHOLE, _KERNEL, _DELEGATE = "Method::execute", "OPERATOR_CALL", "DELEGATE_CALL"
SOURCE = "ExecuTorch's ETDump: kernels in nanoseconds, operators inside XNNPACK in whole microseconds, cut off"
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
        for _ in range(WARM_UP_RUNS):
            session.run(inputs)
        session.etdump()
        while len(recorded) < runs:
            for _ in range(min(_RUNS_AT_ONCE, runs - len(recorded))):
                session.run(inputs)
            recorded += read_etdump(session.etdump())
    return _join(recorded, steps)


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
        else:
            rows += [(step.node, times[key]) for key in keys]
    return Timed(SOURCE, rows, whole)


def _times_of(events: Sequence[Event]) -> dict[Key, int]:
    """Of one run; what a loop runs several times is added up."""
    found: dict[Key, int] = {}
    places: dict[int, int] = {}
    delegates = {event.instruction for event in events if event.inside}
    for event in events:
        if event.inside:
            place = places.get(event.instruction, 0)
            places[event.instruction] = place + 1
            key = (event.instruction, place, event.name)
        elif event.name == _DELEGATE:
            places[event.instruction] = 0
            if event.instruction in delegates:
                continue
            key = (event.instruction, -1, event.name)
        elif event.name == _KERNEL:
            key = (event.instruction, -1, event.name)
        else:  # the same once more, or no operator
            continue
        found[key] = found.get(key, 0) + event.duration_ns
    return found
