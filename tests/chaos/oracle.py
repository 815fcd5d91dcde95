"""What a chaos run is judged by; pure: journals and stored rows in, what is wrong out.

For each device:
1. Every record whose append returned is stored once, with its sequence, kind, time and body, byte for byte, or was
   dropped and counted.
2. An append that failed left nothing. One that a kill interrupted is there whole, or not at all.
3. Nothing else is stored but what outbox and agent themselves put on record.
4. The stored sequences run from 1 to the last one that was given, without a gap but for dropped ones. No more are
   missing than the outbox counts as dropped (what arrived and had no receipt yet may be dropped, and is not missing),
   the last report's total is that count, and each that is missing is in the span of a report.
5. Records of one priority arrive in order of sequence. One that comes after a later one (late) must have been under way
   during a fault: between its append and its arrival there was one. With several collectors, which commit side by side,
   this does not hold and is not asked.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from ferryman.runtime.contracts.record import encode
from ferryman.runtime.contracts.telemetry import priority
from tests.chaos.bodies import MARK, record
from tests.chaos.journal import BEGUN, DONE, FAILED, Append
from tests.chaos.stores import Stored

OWN_KINDS = frozenset({"dropped", "clock"})
"""What an outbox and its publisher put on record by themselves."""
AGENT_KINDS = OWN_KINDS | {"slots", "sample", "log", "drift", "update"}
_SHOWN = 5


class Report(msgspec.Struct):
    """As much of a body of kind `dropped` as is judged."""

    records: int
    first: int
    last: int
    total: int


class End(NamedTuple):
    """What a device's outbox says at the end."""

    newest: int
    """The last sequence it gave."""
    pending: int
    dropped: int


class Rules(NamedTuple):
    """What a device may do."""

    own_kinds: frozenset[str] = OWN_KINDS
    may_drop: bool = False
    ordered: bool = True
    """Whether 5 is asked."""


@dataclass
class Verdict:
    """What was found, and what is wrong with it."""

    device: str
    wrong: list[str] = field(default_factory=list)
    acknowledged: int = 0
    """Records whose append returned."""
    stored: int = 0
    own: int = 0
    dropped: int = 0
    late: int = 0
    refused: int = 0
    """Appends that failed."""
    interrupted: int = 0
    """Appends that a kill interrupted."""
    missing: int = 0
    """Sequences that are not stored, because they were dropped."""

    def blame(self, what: str, examples: Sequence[object]) -> None:
        if examples:
            shown = ", ".join(map(str, examples[:_SHOWN]))
            self.wrong.append(f"{self.device}: {len(examples)} {what}, such as {shown}")


def judge(
    device: str,
    appends: Iterable[Append],
    rows: Iterable[Stored],
    end: End,
    faults: Sequence[tuple[int, int]],
    rules: Rules,
) -> Verdict:
    """Compare; `faults` are the times in which something was wrong, in order and apart from each other."""
    verdict = Verdict(device)
    appends = list(appends)
    by_sequence = {s: (a, n) for a in appends for n, s in enumerate(a.sequences, a.first) if a.state == DONE}
    verdict.acknowledged = sum(append.count for append in appends if append.state == DONE)
    verdict.refused = sum(append.state == FAILED for append in appends)
    interrupted = [append for append in appends if append.state == BEGUN]
    verdict.interrupted = len(interrupted)
    open_numbers = {_body(device, n): (a, n) for a in interrupted for n in range(a.first, a.first + a.count)}

    twice, changed, foreign = [], [], []
    seen: set[int] = set()
    came: list[tuple[int, int, str, int]] = []
    whole: Counter[int] = Counter()
    reports: list[Report] = []
    boots: set[str] = set()
    for row in rows:
        verdict.stored += 1
        boots.add(row.boot)
        if row.sequence in seen:
            twice.append(row.sequence)
            continue
        seen.add(row.sequence)
        content = (row.kind, row.body.encode())
        at_ns = 0
        if known := by_sequence.get(row.sequence):
            append, number = known
            at_ns = append.at_ns
            if content != _body(device, number) or row.recorded_ns != append.recorded_ns:
                changed.append(f"{row.sequence} ({row.kind} {row.recorded_ns} {row.body[:80]})")
        elif open_one := open_numbers.pop(content, None):
            append, number = open_one
            at_ns = append.at_ns
            whole[append.first] += 1
        elif row.kind in rules.own_kinds and MARK not in row.body:
            verdict.own += 1
            if row.kind == "dropped":
                reports.append(msgspec.json.decode(row.body, type=Report))
        else:
            foreign.append(f"{row.sequence} ({row.kind} {row.body[:80]})")
        if at_ns:
            came.append((row.received_ns, row.sequence, row.kind, at_ns))
    verdict.blame("boots are stored, and there was one", sorted(boots) if len(boots) > 1 else [])
    verdict.blame("records are stored twice", twice)
    verdict.blame("records are stored with another content", changed)
    verdict.blame("stored records were never appended, or appended under another sequence", foreign)
    verdict.blame(
        "appends were interrupted and are there in part",
        [f"{a.first}..{a.first + a.count - 1}: {whole[a.first]}" for a in interrupted if 0 < whole[a.first] < a.count]
        if not rules.may_drop
        else [],
    )
    missing = [sequence for sequence in range(1, end.newest + 1) if sequence not in seen]
    _judge_gaps(verdict, missing, by_sequence.keys() - seen, end, rules)
    verdict.blame("sequences are stored which the outbox never gave", sorted(s for s in seen if s > end.newest))
    _judge_reports(verdict, missing, reports, end)
    _judge_order(verdict, came, faults, rules)
    return verdict


def _judge_gaps(verdict: Verdict, missing: list[int], lost: set[int], end: End, rules: Rules) -> None:
    verdict.dropped, verdict.missing = end.dropped, len(missing)
    if end.pending:
        verdict.wrong.append(f"{verdict.device}: {end.pending} records still wait in the outbox")
    if end.dropped and not rules.may_drop:
        verdict.wrong.append(f"{verdict.device}: {end.dropped} records were dropped though there was room")
    verdict.blame("acknowledged records are lost", sorted(s for s in lost if not rules.may_drop or s > end.newest))
    if len(missing) > end.dropped:
        counted = f"{end.dropped} records were counted as dropped, {len(missing)} are missing"
        verdict.wrong.append(f"{verdict.device}: {counted}, such as {missing[:_SHOWN]}")


def _judge_reports(verdict: Verdict, missing: list[int], reports: list[Report], end: End) -> None:
    if max((report.total for report in reports), default=0) != end.dropped:
        totals = sorted(report.total for report in reports)
        verdict.wrong.append(f"{verdict.device}: {end.dropped} records were dropped, reported were {totals[-3:]}")
    if sum(report.records for report in reports) == end.dropped:  # else reports were dropped themselves
        spans = sorted((report.first, report.last) for report in reports)
        verdict.blame(
            "missing records are in no report", [s for s in missing if not any(a <= s <= b for a, b in spans)]
        )


def _judge_order(
    verdict: Verdict, came: list[tuple[int, int, str, int]], faults: Sequence[tuple[int, int]], rules: Rules
) -> None:
    """What was committed at once has no order among itself."""
    starts = [start for start, _ in faults]
    highest: dict[int, int] = {}
    unexplained = []
    for received_ns, sequence, kind, at_ns in sorted(came):
        level = priority(kind)
        if sequence < highest.get(level, 0):
            verdict.late += 1
            before = bisect_right(starts, received_ns)
            if not before or faults[before - 1][1] < at_ns:
                unexplained.append(sequence)
        else:
            highest[level] = sequence
    if rules.ordered:
        verdict.blame("records arrived after later ones though nothing was wrong meanwhile", unexplained)


def _body(device: str, number: int) -> tuple[str, bytes]:
    kind, body = record(device, number)
    return kind, encode(body)
