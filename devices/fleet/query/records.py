"""What queries answer with: frozen, typed, free of how it is shown; times are nanoseconds since the Unix epoch.

Each document carries its `type` as JSON; `docs/telemetry/fleet.schema.json` describes all of them. None is a value that
is not known: the device did not tell, or nothing fell into the window.
"""

from __future__ import annotations

from typing import Literal

from msgspec import field

from ferryman.devices.fleet.alerts.silences import SilenceRow
from ferryman.runtime.contracts.record import Record, Unavailable

SCHEMA = 1
"""Of all documents; raised when a field's meaning changes."""

Clock = Literal["sure", "unsure", "corrected"]
CLOCKS: tuple[Clock, ...] = ("sure", "unsure", "corrected")
"""By the store's number for it."""


class Quantiles(Record):
    """Of a metric over a window, from sketches that were merged: a rank is off by less than 2 %."""

    count: int
    """Values that are in it."""
    p50: float
    p90: float
    p95: float
    p99: float
    most: float


class Worst(Record):
    """A device that stands out by its newest sample."""

    device: str
    value: float
    time_ns: int
    """Of that sample."""


class FleetStatus(Record, tag="fleet-status", kw_only=True):
    """A fleet on one screen."""

    schema: int = SCHEMA
    now_ns: int
    since_ns: int
    """The window of `latency_ms`, `inferences`, `errors` and `drops` begins then and ends at `now_ns`."""
    devices: int
    online: int
    silent: int
    """Of those online, the ones that nobody has heard for half an hour: they did not say that they went."""
    ferryman: dict[str, int]
    """Version -> devices."""
    models: dict[str, int]
    packages: dict[str, int]
    """`name (sha256)` -> devices that serve it; `-`: nothing."""
    releases: dict[str, int]
    """Release -> devices; `-`: it came by another way."""
    open_alerts: dict[str, int]
    """Severity -> alerts that still hold."""
    samples_per_minute: float
    """Over the last five minutes, by the devices' clocks."""
    drops: int
    """Records that full outboxes dropped, by what the devices reported within the window."""
    dropped_total: int
    """The same over the life of the outboxes, by the last status of each device."""
    waiting: int
    """Records in outboxes, by the last status of each device."""
    inferences: int
    errors: int
    latency_ms: Quantiles | None
    worst_error_percent: tuple[Worst, ...]
    worst_latency_ms: tuple[Worst, ...]
    worst_temperature_c: tuple[Worst, ...]
    left_out: tuple[str, ...] = ()


class DeviceRow(Record, kw_only=True):
    """A device: what it said last, and how it did over the window."""

    device: str
    online: bool
    seen_ns: int
    """When anything of it last arrived."""
    changed_ns: int
    """When `online` last changed."""
    mode: str
    """How much it uses its link: full, metered or offline, on purpose; empty: it does not tell."""
    model: str
    labels: dict[str, str]
    ferryman: str
    package: str | None
    package_sha256: str | None
    release: str | None
    inferences: int
    """Over the window, as are `errors` and the latencies."""
    errors: int
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    sample_ns: int | None
    """Of the newest sample; what follows is of that one."""
    temperature_c: float | None
    throttled: bool | None
    memory_used_mb: float | None
    clock_sure: bool | None
    waiting: int
    """Records in its outbox."""
    dropped: int
    """Over the life of its outbox."""
    storage: str = ""
    """Why its disk takes no telemetry, such as `read-only`; empty: it does, or the device does not tell."""


class RunRow(Record, kw_only=True):
    """A measurement, one number a quantity; see `ferryman.devices.fleet.metrics`."""

    device: str
    time_ns: int
    received_ns: int
    package: str
    package_sha256: str
    variant: str
    form: str
    interpreter: str
    interpreter_version: str
    threads: int
    latency_ms: float | Unavailable
    latency_p90_ms: float | Unavailable
    latency_p99_ms: float | Unavailable
    load_ms: float | Unavailable
    first_run_ms: float | Unavailable
    memory_mb: float | Unavailable
    energy_mj: float | Unavailable
    artifact_kb: float | Unavailable


class LogRow(Record, kw_only=True):
    """Something an agent logged."""

    device: str
    boot: str
    sequence: int
    """With `device` and `boot`, the record's name."""
    time_ns: int
    clock: Clock
    received_ns: int
    level: str
    logger: str
    message: str
    times: int
    """How often it was said since it was last recorded."""


class AlertRow(Record, kw_only=True):
    """Something that is or was the matter."""

    device: str
    rule: str
    subject: str
    severity: str
    text: str
    value: float | None
    bound: float | None
    since_ns: int
    until_ns: int | None
    """None: it still holds."""
    silence: int | None = None
    """Number of the silence in the store that keeps it from being told now; None: none does."""
    silenced_until_ns: int | None = None


class SampleRow(Record, kw_only=True):
    """A sample as it is stored."""

    device: str
    boot: str
    sequence: int
    time_ns: int
    clock: Clock
    received_ns: int
    period_s: float
    package_sha256: str | None
    values: dict[str, float]
    unavailable: dict[str, str]
    latencies_ms: tuple[float, ...]


class Point(Record, kw_only=True):
    """A metric over one span of a device."""

    time_ns: int
    """When the span begins, or the time of the one value."""
    count: int
    mean: float
    least: float
    p50: float
    p95: float
    most: float


class Compared(Record, kw_only=True):
    """A group beside the baseline, in one metric; each unit counts as one value, its median."""

    group: str
    metric: str
    devices: int
    units: int
    """Values that are compared: devices, or hours where devices are compared with each other."""
    samples: int
    """Values behind those: inferences for `latency_ms`, samples for the others."""
    median: float
    """Of the units' medians."""
    ratio: float | None
    """Over the baseline; None of the baseline itself, and where values are not all above zero."""
    low: float | None
    """The 95 % interval of the ratio; None: too few units."""
    high: float | None
    pairs: int | None
    """Units that are in both and were compared with themselves; None: the groups were compared as they are."""
    verdict: Literal["less", "more", "same", "unclear"] | None


class _Page(Record, kw_only=True):
    """Rows, and what is not among them."""

    schema: int = SCHEMA
    total: int | None
    """How many rows there are without the limit; None: there are more, and they were not counted."""
    left_out: tuple[str, ...] = ()
    """In words: rows beyond the limit, and what could not be read."""


class Devices(_Page, tag="fleet-devices", kw_only=True):
    """Answer of `device_rows`."""

    rows: tuple[DeviceRow, ...]
    since_ns: int
    """What is told of a window is told from then on."""
    until_ns: int


class Runs(_Page, tag="fleet-runs", kw_only=True):
    """Answer of `runs`."""

    rows: tuple[RunRow, ...]
    """The newest first."""


class Logs(_Page, tag="fleet-logs", kw_only=True):
    """Answer of `logs`."""

    rows: tuple[LogRow, ...]
    """The newest last."""


class Alerts(_Page, tag="fleet-alerts", kw_only=True):
    """Answer of `alerts`."""

    rows: tuple[AlertRow, ...]
    """Those that hold first, then the newest first."""


class Silences(Record, tag="fleet-silences", kw_only=True):
    """Answer of `silences`, the newest first."""

    schema: int = SCHEMA
    now_ns: int
    rows: tuple[SilenceRow, ...]


class Samples(_Page, tag="fleet-samples", kw_only=True):
    """Answer of `samples`."""

    rows: tuple[SampleRow, ...]
    """In order of time."""


class Series(Record, tag="fleet-series", kw_only=True):
    """Answer of `series`, in order of time."""

    schema: int = SCHEMA
    device: str
    metric: str
    span_s: int
    """Length of each point's span; 0: each point is one sample."""
    points: tuple[Point, ...]
    left_out: tuple[str, ...] = ()


class Comparison(Record, tag="fleet-comparison", kw_only=True):
    """Answer of `compare`."""

    schema: int = SCHEMA
    by: str
    baseline: str
    margin: float
    """What counts as the same: 0.02 is a ratio within 1/1.02 to 1.02."""
    since_ns: int
    until_ns: int
    rows: tuple[Compared, ...]
    names: dict[str, str] = field(default_factory=dict)
    """SHA-256 -> name of the package, of groups by `package` that a device serves now."""
    left_out: tuple[str, ...] = ()


class Exported(Record, tag="fleet-export", kw_only=True):
    """What an export wrote."""

    schema: int = SCHEMA
    what: str
    path: str
    format: str
    rows: int
    bytes: int
    first_ns: int | None
    """The least time in it."""
    last_ns: int | None
    """The greatest; the next export begins one nanosecond later, or now, whichever is earlier."""
    left_out: tuple[str, ...] = ()


Document = FleetStatus | Devices | Runs | Logs | Alerts | Silences | Samples | Series | Comparison | Exported
"""Whatever `ferryman fleet ... --json` prints."""
