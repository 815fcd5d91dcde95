"""What a profiling run asks for and what it brings back: raw samples beside every statistic's ingredients."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import Record, Unavailable

SCHEMA = 1
INT64_MAX = (1 << 63) - 1
Int64 = Annotated[int, msgspec.Meta(ge=-INT64_MAX - 1, le=INT64_MAX)]
Count = Annotated[int, msgspec.Meta(ge=0, le=INT64_MAX)]
"""Bytes, nanoseconds, runs: what a reader may compute with without asking how long the number is."""


class ProfileSpec(Record):
    """What to run and how long."""

    variants: tuple[str, ...] = ()
    """Empty: all."""
    interpreters: tuple[str, ...] = ()
    """Empty: every one on the device that can run the variant."""
    threads: Int64 = 1
    warmup_runs: Int64 = 10
    """Not in the statistics, kept in the record; the first run after loading comes before them."""
    runs: Int64 = 200
    timeout_s: float = 600.0
    """For each (variant, interpreter), from the start of its process to its record."""

    def __post_init__(self) -> None:
        """Raise CallerError where one name stands for a tuple of names: it would be read letter by letter."""
        for field, names in (("variants", self.variants), ("interpreters", self.interpreters)):
            if isinstance(names, str):  # type: ignore[unreachable]  # callers may have no type checker
                raise CallerError(f"{field} are names in a tuple, found {names!r}; write ({names!r},)")


class Memory(Record, tag="memory"):
    """One process, from the kernel (/proc/PID/smaps_rollup, VmHWM), in bytes."""

    rss_bytes: Count
    pss_bytes: Count
    uss_bytes: Count
    peak_rss_bytes: Count


class MemoryPhases(Record):
    """The measuring process at four moments, each cumulative: differences are what a phase added."""

    start: Memory | Unavailable
    """Interpreter and inputs are in memory, the artifact is not."""
    loaded: Memory | Unavailable
    first_run: Memory | Unavailable
    steady: Memory | Unavailable


class Reading(Record, tag="reading"):
    """A number someone measured, with its unit's name in the field that holds it."""

    value: float
    source: str


class Energy(Record, tag="energy"):
    """Joules over the steady window: gross, so what the idle device takes is in it."""

    energy_j: float
    window_s: float
    """From the first reading to the last; the timed runs lie within."""
    runs: Count
    """Inferences within the window."""
    source: str
    rails: tuple[str, ...]
    """What the source covers, under its own names."""
    unit: Literal["W", "J"]
    """Of `values`: power, integrated by the trapezoid rule, or a counter of joules, first taken from last."""
    times_ns: tuple[Count, ...]
    """When each reading was taken, from the first one on."""
    values: tuple[float, ...]


class Conditions(Record):
    """Everything about the device that moves the numbers."""

    device_model: str | Unavailable
    cpu_model: str | Unavailable
    cpu_count: Count
    isa: tuple[str, ...]
    """Those of the instruction sets that kernels choose by; the kernel's names."""
    governor: str | Unavailable
    """Of all cores; where they differ, each name once, joined by `+`."""
    clocks_mhz: tuple[float, ...] | Unavailable
    """Core by core."""
    temperatures_c: tuple[Reading, ...] | Unavailable
    """Every thermal zone that can be read."""
    load_1m: float | Unavailable
    memory_total_bytes: Count | Unavailable
    memory_available_bytes: Count | Unavailable
    kernel: str
    machine: str
    affinity: tuple[Count, ...]
    """Cores the measuring process may use."""
    versions: dict[str, str]
    """ferryman, python, numpy, and the interpreter under its own name; afterwards also the kernels that took part."""


class Measurement(Record, kw_only=True):
    """One (package, variant, interpreter) on one device."""

    schema: Count = SCHEMA
    package_name: str
    package_sha256: str
    variant: str
    form: str
    runtime: str
    interpreter: str
    interpreter_version: str
    artifact_bytes: Count
    input_shapes: tuple[tuple[Count, ...], ...]
    """Of the golden input every run was made on."""
    spec: ProfileSpec
    started_at_ns: Count
    """Device wall clock, Unix epoch."""
    import_ns: Count
    """The interpreter's own libraries, before any artifact."""
    load_ns: Count
    """open_session until it can run; some interpreters defer work to the first run."""
    first_run_ns: Count
    warmup_ns: tuple[Count, ...]
    samples_ns: tuple[Count, ...]
    """Every timed run, in order; nothing is left out."""
    memory: MemoryPhases
    energy: Energy | Unavailable
    before: Conditions
    after: Conditions
    cache: str | None = None
    """What became of packed weights at loading, see `ferryman.runtime.cache.CacheUse`: only `warm` found them on disk,
    and a profile looks for none. None: of an older ferryman."""
