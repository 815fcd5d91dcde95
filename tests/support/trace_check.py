"""A strict reader of the JSON trace event format: what a viewer may do with a file, checked.

Source: "Trace Event Format" (the catapult project): object form, phases X, C, M; times in microseconds;
slices of a thread are nested or apart, never crossing.
"""

from __future__ import annotations

import itertools
import json
import math

REQUIRED = {
    "X": {"name", "cat", "pid", "tid", "ts", "dur"},
    "C": {"name", "pid", "ts", "args"},
    "M": {"name", "pid", "args"},
}
METADATA = {"process_name": str, "process_sort_index": int, "thread_name": str, "thread_sort_index": int}
TIME_UNITS = {"ms", "ns"}


def check_trace(text: str) -> list[dict]:
    """The events of a trace; AssertionError where a viewer could stumble."""
    whole = json.loads(text, parse_constant=_refuse)
    assert set(whole) == {"traceEvents", "displayTimeUnit", "otherData"}, f"odd parts: {set(whole)}"
    assert whole["displayTimeUnit"] in TIME_UNITS, f"odd unit {whole['displayTimeUnit']}"
    events = whole["traceEvents"]
    for event in events:
        check_event(event)
    timed = [event for event in events if event["ph"] != "M"]
    assert all(before["ts"] <= after["ts"] for before, after in itertools.pairwise(timed)), "not in order of time"
    named = {event["pid"] for event in events if event["name"] == "process_name"}
    assert {event["pid"] for event in events} <= named, "a process without a name"
    rows = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    assert {(e["pid"], e["tid"]) for e in events if e["ph"] == "X"} <= rows, "a thread without a name"
    check_nesting([event for event in timed if event["ph"] == "X"])
    return events


def _refuse(word: str) -> None:
    raise AssertionError(f"{word} is not JSON")


def check_event(event: dict) -> None:
    phase = event["ph"]
    assert REQUIRED[phase] <= set(event), f"{event} lacks {REQUIRED[phase] - set(event)}"
    assert isinstance(event["name"], str), f"{event} has no name"
    assert event["name"].isprintable(), f"{event} has a name that cannot be printed"
    for key in ("pid", "tid"):
        assert type(event.get(key, 0)) is int, f"{event} has a {key} that is no integer"
        assert event.get(key, 0) >= 0, f"{event} has a {key} below 0"
    for key in ("ts", "dur"):
        assert isinstance(event.get(key, 0), int | float), f"{event} has a {key} that is no number"
        assert math.isfinite(event.get(key, 0)), f"{event} has a {key} without end"
        assert event.get(key, 0) >= 0, f"{event} has a {key} below 0"
    args = event.get("args", {})
    assert isinstance(args, dict), f"{event} has args that are no object"
    if phase == "M":
        assert [type(value) for value in args.values()] == [METADATA[event["name"]]], f"{event} names nothing"
    if phase == "C":
        assert args, f"{event} counts nothing"
        assert all(type(value) in {int, float} and math.isfinite(value) for value in args.values()), (
            f"{event} counts oddly"
        )


def check_nesting(slices: list[dict]) -> None:
    """By thread: each slice lies within the one that is open, or begins after it has ended."""
    open_ends: dict[tuple[int, int], list[float]] = {}
    for event in slices:
        stack = open_ends.setdefault((event["pid"], event["tid"]), [])
        end = event["ts"] + event["dur"]
        slack = 0.002 + 1e-12 * end  # a tick of the format, and what adding floats costs
        while stack and stack[-1] <= event["ts"] + slack and not (end <= stack[-1]):
            stack.pop()
        assert not stack or end <= stack[-1] + slack, f"{event} crosses the end of the slice around it"
        stack.append(end)
