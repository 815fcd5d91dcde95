"""How one measurement stands against another: ratios with intervals, verdicts, and what else differed."""

from __future__ import annotations

from typing import Literal

from ferryman.runtime.contracts.measurement import Measurement
from ferryman.runtime.contracts.record import Record

SCHEMA = 1
Verdict = Literal["faster", "slower", "less", "more", "same", "unclear"]
"""`less` and `more` are for bytes and joules. All but `unclear` hold of the whole interval."""
CauseName = Literal[
    "throttled", "clock", "governor", "heat", "busy", "memory",
    "version", "setting", "warm-up", "drift", "artifact", "unknown",
]  # fmt: skip


class Ratio(Record):
    """One quantity of the other over the baseline's."""

    metric: str
    """`p50`, `p90`, `load`, `first run`, `memory`, `energy`."""
    unit: Literal["ns", "bytes", "J"]
    baseline: float
    """The median over the processes; so of `other`."""
    other: float
    ratio: float
    """The middle of what the rounds say; that of `other` and `baseline` may be a little off it."""
    low: float | None
    """The 95 % confidence interval of `ratio`; None: too few processes for one."""
    high: float | None
    p_value: float | None
    """Of a rank test that nothing differs; None where ranks cannot tell."""
    verdict: Verdict | None
    """None: one value each, of which no scatter is known."""
    rounds: int | None = None
    """Where `verdict` is `unclear`: how many rounds would settle it if they scatter as these; None: no number would."""


class Differing(Record):
    """One condition that was not the same."""

    name: str
    baseline: str
    other: str
    bars: bool = False
    """Whether numbers so measured cannot be compared: another device, other threads, another input."""


class Cause(Record):
    """What made runs slow, and what tells so."""

    name: CauseName
    words: str


class Comparison(Record, kw_only=True):
    """A measurement beside a baseline, both whole."""

    schema: int = SCHEMA
    margin: float
    """A ratio within 1 / (1 + margin) to 1 + margin counts as the same."""
    interleaved: bool
    """Whether the processes took turns; if not, whatever changed between the two is in the ratio, and not in its
    interval."""
    baseline: Measurement
    other: Measurement
    ratios: tuple[Ratio, ...]
    """`p50` is the first."""
    differences: tuple[Differing, ...]
    causes: tuple[Cause, ...]
    """Of the slower one's slowness; of scatter where `p50` is unclear."""

    @property
    def verdict(self) -> Verdict:
        """That of `p50`."""
        return self.ratios[0].verdict or "unclear"
