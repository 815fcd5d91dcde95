"""Reads an ETDump: what ExecuTorch recorded of its runs. Schema: etdump_schema_flatcc.fbs of ExecuTorch 1.5.1."""

from __future__ import annotations

from dataclasses import dataclass

from ferryman.runtime.contracts.errors import RuntimeFault
from ferryman.runtime.flatbuffer import BrokenError, Table, number

_IDENTIFIER = b"ED00"
_SIZE_BYTES = 4
"""Before the FlatBuffer: how long it is."""
_VERSION = 0
_EVENTS_MAX = 1 << 23
"""More than a profile records; bytes that claim more must not keep us."""
_RUN = "Execute"
_DUMP_VERSION, _DUMP_RUNS = 0, 1
_RUN_NAME, _RUN_EVENTS = 0, 3
_EVENT_PROFILE = 0
_NAME, _INSTRUCTION, _DELEGATE_INT, _DELEGATE_NAME, _START, _END = 0, 2, 3, 4, 6, 7


@dataclass(frozen=True)
class Event:
    """Something that took time."""

    name: str
    instruction: int
    """Of the method's; -1: of none."""
    inside: bool
    """It is of a delegate's inside, and the delegate named it."""
    duration_ns: int


def read_etdump(data: bytes) -> list[list[Event]]:
    """The events of each run, in the order they ended.

    Raises:
        RuntimeFault: the bytes are no ETDump, or of another version.
    """
    try:
        return _read_runs(data)
    except BrokenError as error:
        raise RuntimeFault(f"ETDump is damaged: {error}") from error


def _read_runs(data: bytes) -> list[list[Event]]:
    size = number(data, "<I", 0)
    if size != len(data) - _SIZE_BYTES:
        raise BrokenError(f"expected {size + _SIZE_BYTES} bytes, as it says itself, found {len(data)}")
    root = Table.root(memoryview(data)[_SIZE_BYTES:], _IDENTIFIER)
    version = root.integer(_DUMP_VERSION, "I")
    if version != _VERSION:
        raise RuntimeFault(f"ETDump: expected version {_VERSION}, found {version}")
    runs: list[list[Event]] = []
    room = _EVENTS_MAX
    for run in root.tables(_DUMP_RUNS):
        room -= 1 + len(run.tables(_RUN_EVENTS))
        if room < 0:
            raise BrokenError(f"more than {_EVENTS_MAX:,} events")
        if run.text(_RUN_NAME) == _RUN:
            runs.append(_read_run(run))
    return runs


def _read_run(run: Table) -> list[Event]:
    events = []
    for event in run.tables(_RUN_EVENTS):
        held = event.table(_EVENT_PROFILE)
        if held is None:  # of memory, or of values
            continue
        duration = held.integer(_END, "Q") - held.integer(_START, "Q")
        if not 0 <= duration < 1 << 62:
            raise BrokenError(f"an event ends {-duration} ns before it starts")
        name, inner = held.text(_NAME), held.text(_DELEGATE_NAME)
        if inner is None and (number := held.integer(_DELEGATE_INT, "i", -1)) != -1:
            inner = str(number)
        events.append(
            Event(
                name=inner or name or "",
                instruction=held.integer(_INSTRUCTION, "i", -1),
                inside=inner is not None,
                duration_ns=duration,
            )
        )
    return events
