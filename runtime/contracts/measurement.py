"""What a profiling run asks for and what it brings back: raw samples beside every statistic's ingredients."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Annotated

import msgspec

from ferryman.runtime.contracts.energy import Energy, EnergyEstimate, PowerModel
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.layers import LayerStatistics
from ferryman.runtime.contracts.operators import Operators
from ferryman.runtime.contracts.record import Record, Unavailable
from ferryman.runtime.contracts.samples import Samples

SCHEMA = 2
KEPT_MAX = 40_000
"""Durations that one measurement keeps exact, of each kind; of the rest it keeps the distribution."""
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
    starts: Int64 = 5
    """Fresh processes for each (variant, interpreter); in each: start, import, load, first run, warm-up, timed runs."""
    warmup_runs: Int64 | None = None
    """In each process, not in the statistics, kept in the record. None: until runs have settled."""
    runs: Int64 | None = None
    """In each process. None: until the median is known within `error`, for at most 5 s."""
    error: float = 0.01
    """Half of the 95 % confidence interval of the median over the median, of one process's runs."""
    single_stream: bool = False
    """MLPerf's rule for its single-stream scenario instead: at least 1,024 runs and 60 s in each process."""
    rate_hz: float | None = None
    """Also ask at a fixed rate, whether or not the last answer is there, and take latency from the time of asking."""
    sustained_s: float = 0.0
    """Also run without a pause for so long, and tell how it goes in intervals; 0: no."""
    start_below_c: float | None = None
    """Begin each process only once the hottest zone is below it."""
    energy: bool = True
    """Where the device has a source: ten seconds idle, then ten seconds of runs."""
    meter: str | None = None
    """A meter beside the device, in place of its own sources, such as `mqtt://host/topic?kind=tasmota`; see docs."""
    estimate: PowerModel | None = None
    """Also estimate joules by this model, under their own name."""
    operators: bool = False
    """Also time each operator, in a process apart."""
    layers: bool = False
    """Also take statistics of each layer's activations, in a process apart."""
    timeout_s: float = 600.0
    """For each process, from its start to its record."""

    def __post_init__(self) -> None:
        """Raise CallerError where one name stands for a tuple of names: it would be read letter by letter."""
        for field, names in (("variants", self.variants), ("interpreters", self.interpreters)):
            if isinstance(names, str):  # type: ignore[unreachable]  # callers may have no type checker
                raise CallerError(f"{field} are names in a tuple, found {names!r}; write ({names!r},)")


class Memory(Record, tag="memory"):
    """One process, from the kernel (/proc/PID/smaps_rollup and status), in bytes."""

    rss_bytes: Count
    pss_bytes: Count
    uss_bytes: Count
    peak_rss_bytes: Count
    """The most `rss_bytes` has been in the phase that ends here; since the process began where the kernel does not let
    the mark be reset."""
    anonymous_bytes: Count = 0
    """Of `pss_bytes`: what no file backs, such as the heap."""
    file_bytes: Count = 0
    """Of `pss_bytes`: pages of mapped files, which the kernel can drop and read again."""


class MemoryPhases(Record):
    """The measuring process at the end of each phase, each cumulative: differences are what a phase added."""

    process: Memory | Unavailable
    """Python, ferryman and the inputs are in memory."""
    start: Memory | Unavailable
    """So is the interpreter; the artifact is not."""
    loaded: Memory | Unavailable
    first_run: Memory | Unavailable
    steady: Memory | Unavailable
    closed: Memory | Unavailable
    """The session is closed: over `start`, it is what was retained."""
    peak_rss_bytes: Count | Unavailable
    """The largest over all phases."""
    arena_bytes: Count | Unavailable
    """What the interpreter planned for activations; see docs/measurement.md for each interpreter."""


class Reading(Record, tag="reading"):
    """A number someone measured, with its unit's name in the field that holds it."""

    value: float
    source: str


class Gate(Record):
    """The wait for the device to cool down before a process began."""

    below_c: float
    waited_s: float
    temperature_c: Reading | Unavailable
    """The hottest zone when it began."""
    opened: bool
    """False: it began all the same, after the longest wait."""


class Start(Record, kw_only=True):
    """One fresh process: what each step of a cold start took, then the runs."""

    process_ns: Count
    """From asking the kernel for it until the inputs were in memory: Python, ferryman, numpy."""
    import_ns: Count
    """The interpreter's own libraries, before any artifact."""
    load_ns: Count
    """open_session until it can run; some interpreters defer work to the first run."""
    first_run_ns: Count
    warmup: Samples
    settled: bool
    """Whether the last warm-up runs were shown to be no faster than those before them; of less than two, no."""
    samples: Samples
    """Every timed run."""
    gate: Gate | None = None
    busy: float | Unavailable = Unavailable(reason="not taken")
    """Share of the device's processors that others took during the timed runs, 0 to 1."""


class Pipeline(Record, tag="pipeline"):
    """Some runs with a clock around the runtime's own call as well: what the copies and checks around it cost."""

    whole: Samples
    model: Samples
    """The runtime's call within each."""


class Arrival(Record):
    """Open loop: asked at a fixed rate, one server; a late answer delays those behind it, and that is counted."""

    rate_hz: float
    latency: Samples
    """From the scheduled time to the answer: waiting in line is in it (no coordinated omission)."""
    service: Samples
    """From the true start to the answer."""
    behind: bool
    """Whether the line was still growing at the end: the device cannot keep this rate."""


class Interval(Record):
    """A stretch of a sustained run."""

    start_s: float
    """Since the run began."""
    seconds: float
    samples: Samples
    clocks_mhz: tuple[float, ...] | Unavailable
    temperatures_c: tuple[Reading, ...] | Unavailable
    throttled: tuple[str, ...] | Unavailable
    """Reasons that hold now, in the words of docs/measurement.md; empty: none."""
    busy: float | Unavailable
    """Share of the device's processors that others took, 0 to 1."""
    load_1m: float | Unavailable
    memory_available_bytes: Count | Unavailable
    rss_bytes: Count | Unavailable


class Conditions(Record, kw_only=True):
    """Everything about the device that moves the numbers."""

    device_model: str | Unavailable
    cpu_model: str | Unavailable
    soc: str | Unavailable = Unavailable(reason="not taken")
    """The chip, from the device tree's `compatible` or soc bus."""
    cpu_count: Count
    isa: tuple[str, ...]
    """Those of the instruction sets that kernels choose by; the kernel's names."""
    governor: str | Unavailable
    """Of all cores; where they differ, each name once, joined by `+`."""
    clocks_mhz: tuple[float, ...] | Unavailable
    """Core by core."""
    temperatures_c: tuple[Reading, ...] | Unavailable
    """Every thermal zone that can be read."""
    throttled: tuple[str, ...] | Unavailable = Unavailable(reason="not taken")
    """Reasons why the clock is held down now, or was since boot (`... before`); empty: none."""
    power_source: str | Unavailable = Unavailable(reason="not taken")
    """`mains`, `battery`, as power_supply tells."""
    load_1m: float | Unavailable
    memory_total_bytes: Count | Unavailable
    memory_available_bytes: Count | Unavailable
    kernel: str
    machine: str
    emulated: str = ""
    """By what program; then no time here is the device's. Empty: not, as far as the device tells."""
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
    starts: tuple[Start, ...]
    """In the order of the processes; at least one."""
    memory: MemoryPhases
    """Of the first process."""
    pipeline: Pipeline | Unavailable
    arrival: Arrival | None = None
    """None: not asked for; so of those that follow."""
    sustained: tuple[Interval, ...] | None = None
    energy: Energy | Unavailable | None = None
    energy_estimate: EnergyEstimate | None = None
    """By a model and no sensor, where the spec asked for one."""
    operators: Operators | Unavailable | None = None
    layers: LayerStatistics | Unavailable | None = None
    before: Conditions
    after: Conditions
    cache: str | None = None
    """What became of packed weights at loading, see `ferryman.runtime.cache.CacheUse`: only `warm` found them on disk,
    and a profile looks for none."""

    def __post_init__(self) -> None:
        """Raise ValueError where the record is of another schema: its fields mean something else."""
        if self.schema != SCHEMA:
            raise ValueError(f"a measurement of schema {self.schema}; this ferryman reads schema {SCHEMA}")

    @property
    def samples_ns(self) -> Sequence[int]:
        """The timed runs of all processes, in order; where a `Samples` kept not all, those it kept."""
        return [value for start in self.starts for value in start.samples]

    @property
    def import_ns(self) -> float:
        """The median over the processes; so of those below."""
        return statistics.median(start.import_ns for start in self.starts)

    @property
    def load_ns(self) -> float:
        """See `Start.load_ns`."""
        return statistics.median(start.load_ns for start in self.starts)

    @property
    def first_run_ns(self) -> float:
        """See `Start.first_run_ns`."""
        return statistics.median(start.first_run_ns for start in self.starts)

    @property
    def process_ns(self) -> float:
        """See `Start.process_ns`."""
        return statistics.median(start.process_ns for start in self.starts)
