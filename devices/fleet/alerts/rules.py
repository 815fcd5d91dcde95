"""The rules there are: each a table of the TOML file, with its defaults."""

from __future__ import annotations

from typing import Annotated

import msgspec

from ferryman.runtime.contracts.alert import Severity
from ferryman.runtime.contracts.record import Record

Name = Annotated[str, msgspec.Meta(max_length=64, pattern=r"^[A-Za-z0-9_-]*\Z")]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=30 * 86_400)]
Above = Annotated[float, msgspec.Meta(gt=0)]
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]
Few = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Periods = Annotated[int, msgspec.Meta(ge=1, le=32)]
"""As many samples of a device are looked at: see `ferryman.devices.fleet.alerts.windows`."""


class _Rule(Record, tag_field="when", forbid_unknown_fields=True):
    name: Name = ""
    """Empty: that of its kind. One of the name of a default takes its place."""
    devices: str = "all"
    """A query."""
    severity: Severity = "warning"
    for_s: Seconds = 60.0
    """It must hold so long before anybody is told."""
    clear_s: Seconds = 60.0
    """And so long not, before it counts as over."""
    enabled: bool = True


SILENT_S = 1800.0
"""Who was not heard for so long, and did not say that it went, is silent; a device says its status twice as often."""


class Offline(_Rule, tag="offline"):
    """The device's status says offline for `for_s`, or nothing was heard of it for `silent_s`.

    Not where it went offline on purpose (`ferryman outbox mode offline`).
    """

    severity: Severity = "critical"
    for_s: Seconds = 300.0
    clear_s: Seconds = 30.0
    silent_s: Seconds = SILENT_S
    """Longer than the pause between two messages may be; counted while the collector hears the broker."""


class Slower(_Rule, tag="latency"):
    """Inferences take `ratio` times as long as they did: see `ferryman.devices.fleet.alerts.regress`."""

    ratio: Annotated[float, msgspec.Meta(gt=1)] = 1.3
    periods_min: Periods = 10
    """Samples with inferences, on the side of now."""
    inferences_min: Few = 100
    """On the side of the past."""


class Costlier(_Rule, tag="energy"):
    """The same of the energy of an inference."""

    ratio: Annotated[float, msgspec.Meta(gt=1)] = 1.3
    periods_min: Periods = 10
    inferences_min: Few = 20
    """Samples that tell of energy, on the side of the past."""


class Drifted(_Rule, tag="drift"):
    """What a tensor holds is so far from what it held when the package began to serve there.

    `distance` is that of Kolmogorov and Smirnov (0 to 1), less what the sketches may err: see
    `ferryman.profiler.drift_distance`.
    """

    for_s: Seconds = 0.0
    clear_s: Seconds = 0.0
    distance: Share = 0.2


class Throttled(_Rule, tag="throttled"):
    """The device holds its clock down in this share of its samples."""

    share: Share = 0.5
    periods_min: Periods = 5


class Failing(_Rule, tag="errors"):
    """This share of the requests failed, of at least so many."""

    severity: Severity = "critical"
    for_s: Seconds = 0.0
    share: Share = 0.05
    requests_min: Few = 20


class Dropping(_Rule, tag="dropped"):
    """The outbox was full and records made room, as told within the last `window_s`."""

    for_s: Seconds = 0.0
    records: Few = 1
    window_s: Seconds = 600.0


class FullDisk(_Rule, tag="disk"):
    """Less than so much is free where the slots are."""

    free_mb: Above = 500.0


class RefusingDisk(_Rule, tag="storage"):
    """The disk takes no telemetry: it is read-only, full or failing, as the device's status says."""

    severity: Severity = "critical"


class LostClock(_Rule, tag="clock"):
    """The device's clock has not been synchronised for so long; in a container that cannot ask, it never is."""

    for_s: Seconds = 86_400.0


class Garbled(_Rule, tag="quarantine"):
    """So many new messages on the device's topics could not be taken, within `window_s`."""

    for_s: Seconds = 0.0
    messages: Few = 10
    window_s: Seconds = 600.0


Rule = (
    Offline
    | Slower
    | Costlier
    | Drifted
    | Throttled
    | Failing
    | Dropping
    | FullDisk
    | RefusingDisk
    | LostClock
    | Garbled
)

DEFAULTS: tuple[Rule, ...] = (
    Offline(),
    Slower(),
    Costlier(),
    Drifted(),
    Throttled(),
    Failing(),
    Dropping(),
    FullDisk(),
    RefusingDisk(),
    LostClock(),
    Garbled(),
)


def name_of(rule: Rule) -> str:
    """What it is called: in the store, on MQTT, in silences."""
    return rule.name or str(rule.__struct_config__.tag)
