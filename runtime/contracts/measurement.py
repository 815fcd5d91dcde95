"""What a profiling run asks for and what it brings back: raw samples beside every statistic's ingredients."""

from __future__ import annotations

from ferryman.runtime.contracts.record import Record, Unavailable

SCHEMA = 1


class ProfileSpec(Record):
    """What to run and how long."""

    variants: tuple[str, ...] = ()
    """Empty: all."""
    interpreters: tuple[str, ...] = ()
    """Empty: every one on the device that can run the variant."""
    threads: int = 1
    warmup_runs: int = 10
    runs: int = 200


class Memory(Record, tag="memory"):
    """One process, from the kernel (/proc/PID/smaps_rollup, VmHWM), in bytes."""

    rss_bytes: int
    pss_bytes: int
    uss_bytes: int
    peak_rss_bytes: int


class MemoryPhases(Record):
    """The measuring process at four moments, each cumulative."""

    start: Memory | Unavailable
    """Interpreter imported, nothing loaded."""
    loaded: Memory | Unavailable
    first_run: Memory | Unavailable
    steady: Memory | Unavailable


class Reading(Record, tag="reading"):
    """A number someone measured, with its unit's name in the field that holds it."""

    value: float
    source: str


class Energy(Record, tag="energy"):
    """Joules over the steady window."""

    energy_j: float
    window_s: float
    source: str
    rails: tuple[str, ...]
    samples: int


class Conditions(Record):
    """Everything about the device that moves the numbers."""

    cpu_model: str | Unavailable
    cpu_count: int
    isa: tuple[str, ...]
    governor: str | Unavailable
    clocks_mhz: tuple[float, ...] | Unavailable
    temperature_c: Reading | Unavailable
    load_1m: float | Unavailable
    memory_total_bytes: int
    kernel: str
    machine: str
    affinity: tuple[int, ...]
    versions: dict[str, str]


class Measurement(Record, kw_only=True):
    """One (package, variant, interpreter) on one device."""

    schema: int = SCHEMA
    package_name: str
    package_sha256: str
    variant: str
    form: str
    runtime: str
    interpreter: str
    interpreter_version: str
    artifact_bytes: int
    spec: ProfileSpec
    started_at_ns: int
    load_ns: int
    """open_session until it can run; some interpreters defer work to the first run."""
    first_run_ns: int
    warmup_ns: tuple[int, ...]
    samples_ns: tuple[int, ...]
    memory: MemoryPhases
    energy: Energy | Unavailable
    before: Conditions
    after: Conditions
