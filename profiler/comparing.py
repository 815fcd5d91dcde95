"""Measurements set beside each other: which go together, whether they can be compared, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ferryman.profiler.causes import what_disturbed, why_slower
from ferryman.profiler.differences import differing
from ferryman.profiler.report_words import printable
from ferryman.profiler.verdict import MARGIN, ROUNDS_LEAST, ROUNDS_TELLING, ratios
from ferryman.runtime.contracts.comparison import Cause, Comparison, Ratio, Verdict
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.measurement import Measurement

SLOWER, UNCLEAR = 3, 4
"""Exit codes beside 0; 1 and 2 are those of a command that failed or was called wrongly."""
_UNITS = {"ns": ("ms", 1e6), "bytes": ("MB", 1e6), "J": ("mJ", 1e-3)}


def set_beside(
    baseline: Measurement,
    other: Measurement,
    *,
    interleaved: bool = False,
    margin: float = MARGIN,
    anyway: bool = False,
) -> Comparison:
    """Hold a measurement against a baseline.

    Args:
        baseline: what it was, or is to be.
        other: what may be slower.
        interleaved: whether the processes took turns, and those of the same place are a pair.
        margin: what counts as the same; 0.02 is 2 %.
        anyway: compare numbers of different devices, threads or inputs, too.

    Raises:
        CallerError: they are of different devices, threads or inputs; or see `verdict.ratios`.
    """
    differences = differing(baseline, other)
    if not anyway and (barring := [one for one in differences if one.bars]):
        words = "; ".join(f"{one.name}: {one.baseline} against {one.other}" for one in barring)
        raise CallerError(f"these cannot be compared ({words}); measure again under the same, or ask for it anyway")
    found = ratios(baseline, other, interleaved=interleaved, margin=margin)
    return Comparison(
        margin=margin,
        interleaved=interleaved,
        baseline=baseline,
        other=other,
        ratios=found,
        differences=differences,
        causes=_causes(baseline, other, found[0].verdict, interleaved=interleaved),
    )


def _causes(
    baseline: Measurement, other: Measurement, verdict: Verdict | None, *, interleaved: bool
) -> tuple[Cause, ...]:
    if verdict in {"faster", "slower"}:
        fast, slow = (baseline, other) if verdict == "slower" else (other, baseline)
        return why_slower(fast, slow, interleaved=interleaved)
    if verdict == "same":
        return ()
    return tuple(
        msgspec.structs.replace(cause, words=f"{which}: {cause.words}")
        for which, one in (("baseline", baseline), ("other", other))
        for cause in what_disturbed(one)
    )


def pair_up(baseline: Sequence[tuple[str, str]], other: Sequence[tuple[str, str]]) -> list[tuple[int, int]]:
    """Places of what goes together: the same variant on the same interpreter; else the only ones of an interpreter.

    Args:
        baseline: variants and their interpreters.
        other: likewise.

    Raises:
        CallerError: nothing goes together.
    """
    found = []
    for place, (variant, interpreter) in enumerate(baseline):
        alone = [key for key in baseline if key[1] == interpreter]
        there = [key for key in other if key[1] == interpreter]
        if (variant, interpreter) in there:
            found.append((place, other.index((variant, interpreter))))
        elif len(alone) == len(there) == 1:
            found.append((place, other.index(there[0])))
    if not found:
        names = [", ".join(f"{variant} on {interpreter}" for variant, interpreter in one) for one in (baseline, other)]
        raise CallerError(
            f"no variant is in both on the same interpreter: {names[0]}; and {names[1]}; "
            "name one that is in both, or an interpreter on which each has one"
        )
    return found


def without_partner(
    baseline: Sequence[tuple[str, str]], other: Sequence[tuple[str, str]], pairs: Sequence[tuple[int, int]], name: str
) -> list[str]:
    """What `pair_up` found nothing for, in words; `name` is the other's."""
    sides = (
        (baseline, {mine for mine, _ in pairs}, "the baseline", name),
        (other, {its for _, its in pairs}, name, "the baseline"),
    )
    return [
        printable(f"{variant} on {interpreter} of {of}: it has no partner in {missing}")
        for keys, paired, of, missing in sides
        for place, (variant, interpreter) in enumerate(keys)
        if place not in paired
    ]


def exit_code(comparisons: Sequence[Comparison]) -> int:
    """0: nothing is slower; SLOWER: something is; UNCLEAR: nothing is for sure, and something may be."""
    verdicts = {one.verdict for one in comparisons}
    return SLOWER if "slower" in verdicts else UNCLEAR if "unclear" in verdicts else 0


def describe(one: Comparison) -> str:
    """A table of the ratios, the verdict in a sentence, and what differed, as plain text."""
    rows = [("", "baseline", "other", "ratio", "95 % interval", "")]
    rows += [_row(ratio) for ratio in one.ratios]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [f"{_named(one.other)} over {_named(one.baseline)}"]
    for row in rows:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:5], widths[1:5], strict=True)),
        ]
        lines.append("  ".join([*cells, row[5]]).rstrip())
    lines.append(f"verdict: {verdict_in_words(one)}")
    lines += [f"because: {cause.words}" for cause in one.causes]
    lines += [f"differs: {d.name}: {d.baseline} against {d.other}" for d in one.differences]
    return "\n".join(_printable(line) for line in lines)


def verdict_in_words(one: Comparison) -> str:
    """Such as `slower, by 4.1 % to 6.0 % (margin 2 %, 15 rounds)`."""
    ratio = one.ratios[0]
    processes = len(one.baseline.starts), len(one.other.starts)
    how = f"{processes[0]} rounds" if one.interleaved else f"{processes[0]} and {processes[1]} processes, not in turn"
    words = f"{one.verdict}{_by(ratio)} (margin {one.margin * 100:g} %, {how})"
    if one.verdict != "unclear":
        return words
    if ratio.low is None:
        return f"{words}; too few processes: {ROUNDS_LEAST} of each or more have a 95 % interval"
    if ratio.rounds is None and min(processes) < ROUNDS_TELLING:
        return f"{words}; too few rounds to tell how many would settle it: take {ROUNDS_TELLING} or more"
    if ratio.rounds is None:
        return f"{words}; more rounds would not settle it: take a wider margin, or a quieter device"
    return f"{words}; about {ratio.rounds} would settle it"


def _by(ratio: Ratio) -> str:
    if ratio.low is None or ratio.high is None:
        return ""
    ends = (
        sorted((ratio.low - 1, ratio.high - 1), key=abs)
        if ratio.verdict == "faster"
        else (ratio.low - 1, ratio.high - 1)
    )
    if ratio.verdict in {"faster", "slower"}:
        return f", by {abs(ends[0]) * 100:.1f} % to {abs(ends[1]) * 100:.1f} %"
    return f", {ends[0] * 100:+.1f} % to {ends[1] * 100:+.1f} %"


def _row(ratio: Ratio) -> tuple[str, str, str, str, str, str]:
    unit, scale = _UNITS[ratio.unit]
    if ratio.low is None or ratio.high is None:
        interval = "too few processes" if ratio.verdict else ""
    else:
        interval = f"{ratio.low:.3f} to {ratio.high:.3f}"
    return (
        f"{ratio.metric}, {unit}",
        f"{ratio.baseline / scale:.4g}",
        f"{ratio.other / scale:.4g}",
        f"{ratio.ratio:.3f}",
        interval,
        ratio.verdict or "",
    )


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def _named(one: Measurement) -> str:
    return f"{one.package_name} {one.package_sha256[:12]} {one.variant} on {one.interpreter}"
