"""Measurements across a fleet."""

from __future__ import annotations

from ferryman.devices.fleet.metrics import Value
from ferryman.devices.fleet.query.asked import check_texts
from ferryman.devices.fleet.query.left_out import LeftOut
from ferryman.devices.fleet.query.measured import measured
from ferryman.devices.fleet.query.reading import Stored, newest
from ferryman.devices.fleet.query.records import RunRow, Runs
from ferryman.devices.fleet.query.who import who
from ferryman.devices.fleet.query.window import window
from ferryman.devices.fleet.store.store import Store
from ferryman.runtime.contracts.measurement import Measurement

LIMIT = 50
_OF_RUN = ("latency_ms", "latency_p90_ms", "latency_p99_ms", "load_ms", "first_run_ms", "memory_mb", "energy_mj")


def runs(
    store: Store,
    *,
    now_ns: int,
    query: str | None = None,
    device: str | None = None,
    package: str | None = None,
    since: str | int | None = None,
    until: str | int | None = None,
    limit: int | None = LIMIT,
) -> Runs:
    """Tell of measurements, the newest (by the device's clock) first.

    Args:
        store: where.
        now_ns: the present.
        query: only of these devices; see `ferryman.devices.fleet.rollout.query`.
        device: only of this one.
        package: only of this one: its name, its SHA-256, or how that begins (8 digits or more).
        since: only from then on; None: all.
        until: only before.
        limit: so many at most; None: all.

    Raises:
        CallerError: an argument is none of its kind, or there is no such device.
        StoreError: the database cannot be read.
    """
    check_texts(package=package)
    left_out = LeftOut()
    devices = who(store, query, device, left_out)

    def read(one: Stored) -> RunRow | None:
        made = measured(one, left_out, lambda found: is_of(found, package), (*_OF_RUN, "artifact_kb"))
        return None if made is None else run_row(one, *made)

    within = window(since, until, now_ns, "")
    rows, more = newest(store, "measurement", within, devices, limit, read)
    if more:
        left_out.say(f"all but the newest {len(rows):,} measurements; raise the limit, or narrow them down")
    return Runs(rows=tuple(rows), total=None if more else len(rows), left_out=left_out.words())


def is_of(found: Measurement, package: str | None) -> bool:
    """Whether it is one of the package."""
    if package is None or package in {found.package_name, found.package_sha256}:
        return True
    return len(package) >= 8 and found.package_sha256.startswith(package)  # noqa: PLR2004  # fewer are a name


def run_row(one: Stored, found: Measurement, values: dict[str, Value]) -> RunRow:
    """Its numbers."""
    return RunRow(
        device=one.device,
        time_ns=one.time_ns,
        received_ns=one.received_ns,
        package=found.package_name,
        package_sha256=found.package_sha256,
        variant=found.variant,
        form=found.form,
        interpreter=found.interpreter,
        interpreter_version=found.interpreter_version,
        threads=found.spec.threads,
        **values,
    )
