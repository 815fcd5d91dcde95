"""How a rollout stands, for people and scripts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ferryman.devices.fleet.rollout.health import RingHealth, ring_health
from ferryman.devices.fleet.rollout.records import UNDER_WAY, Plan, Progress, Row, Standing, standing
from ferryman.devices.fleet.rollout.words import shorten
from ferryman.runtime.contracts.record import Record
from ferryman.runtime.say import printable

_WAITS_NAMED = 8
SHOWN_MAX = 40
"""Devices in a table for people; those that are not well come first."""
_ORDER: tuple[Standing, ...] = (
    *("lost", "failed", "rolled-back", "refused", "stuck", "late", "trial", "installing", "downloading", "waiting"),
    *("asked", "returning", "kept", "returned", "superseded", "confirmed", "pending"),
)
_WELL: frozenset[Standing] = frozenset({"confirmed", "superseded"})


class DeviceView(Record):
    """A device."""

    device: str
    ring: int
    """From 1 on."""
    kind: str
    standing: Standing
    version: int
    variants: tuple[str, ...]
    wire_bytes: int
    wire_total_bytes: int
    error: str
    """Why it waits, refused, failed or rolled back; also of one that went back since."""
    failed: Standing | None = None
    """What it failed with, before it was asked to go back."""


class RingView(Record):
    """A ring."""

    ring: int
    opened: bool
    standings: dict[str, int]
    health: RingHealth


class Overview(Record):
    """A rollout."""

    plan: Plan
    progress: Progress
    rings: tuple[RingView, ...]
    devices: tuple[DeviceView, ...]
    waits: str = ""
    """For whom, where devices that are not there hold it up; empty: for nobody."""

    @property
    def exit_code(self) -> int:
        """For scripts: 0 well, 3 halted, 4 ended and not all devices have it, 5 aborted, 6 under way."""
        if self.progress.phase == "done":
            return 0 if all(one.standing in _WELL for one in self.devices) else 4
        return {"halted": 3, "aborted": 5}.get(self.progress.phase, 6)


def overview(plan: Plan, progress: Progress, rows: Iterable[Row], now_ns: int, heard_since_ns: int = 0) -> Overview:
    """Put it together; the arguments are those of `standing`."""
    rows = list(rows)
    stands = {row.device: standing(row, plan, now_ns, heard_since_ns) for row in rows}
    return Overview(
        plan=plan,
        progress=progress,
        rings=tuple(_ring(number, progress, rows, stands) for number in range(progress.rings)),
        devices=tuple(_device(row, stands[row.device]) for row in rows),
        waits=_waits(progress, [row for row in rows if row.ring == progress.ring], stands),
    )


def _waits(progress: Progress, its: Sequence[Row], stands: dict[str, Standing]) -> str:
    """For whom a ring waits where nobody of it is at work."""
    silent = [row for row in its if stands[row.device] in {"asked", "late"} and row.report is None]
    others = {stands[row.device] for row in its} - {"asked", "late"}
    off = bool(silent) and all(row.offline for row in silent)
    late = any(stands[row.device] == "late" for row in silent)
    last = progress.ring + 1 >= progress.rings
    if progress.phase != "running" or not silent or not (off or late) or others & {"pending", *UNDER_WAY}:
        return ""
    if "confirmed" in others or last:
        if late:
            return ""  # it goes on without them
        until = "until its timeout"
    else:
        until = "one of them must confirm the release before the next ring is asked"
    names = ", ".join(row.device for row in silent[:_WAITS_NAMED]) + (", ..." if len(silent) > _WAITS_NAMED else "")
    what = "offline when the rollout began, and not heard of since" if off else "not heard of in time"
    return printable(f"ring {progress.ring + 1} waits for {names}: {what}; {until}")


def _ring(number: int, progress: Progress, rows: Sequence[Row], stands: dict[str, Standing]) -> RingView:
    its = [row for row in rows if row.ring == number]
    healths = [row.report.health for row in its if row.report and row.report.health]
    return RingView(
        ring=number + 1,
        opened=number <= progress.ring,
        standings=dict(Counter(stands[row.device] for row in its)),
        health=ring_health([row.failed.standing if row.failed else stands[row.device] for row in its], healths),
    )


def _device(row: Row, stands: Standing) -> DeviceView:
    report = row.report
    errors = [one.error for one in (report, row.failed) if one and one.error]
    return DeviceView(
        device=row.device,
        ring=row.ring + 1,
        kind=row.kind,
        standing=stands,
        version=row.version,
        variants=row.variants,
        wire_bytes=report.wire_bytes if report else 0,
        wire_total_bytes=report.wire_total_bytes if report else 0,
        error="; before: ".join(f"{one.party}: {one.message}" for one in errors) or _misheard(row),
        failed=row.failed.standing if row.failed else None,
    )


def _misheard(row: Row) -> str:
    return f"device: what it says is ignored: {row.nonsense}" if row.nonsense else ""


def headline(view: Overview) -> str:
    """One line."""
    plan, progress = view.plan, view.progress
    why = f": {progress.why}" if progress.why else ""
    return printable(
        f"{plan.id}  {plan.release} ({plan.package_sha256[:12]}) to {shorten(plan.query)}: {progress.phase}, "
        f"ring {progress.ring + 1} of {progress.rings}{why}"
    )


def ring_lines(view: Overview) -> list[str]:
    """A line for each ring."""
    return [f"  ring {one.ring}: {_ring_text(one)}" for one in view.rings]


def _ring_text(one: RingView) -> str:
    counts = ", ".join(f"{one.standings[name]} {name}" for name in _ORDER if name in one.standings)
    health = one.health
    parts = [
        *([f"latency x{health.slower:.2f}"] if health.slower is not None else []),
        *([f"energy x{health.energy:.2f}"] if health.energy is not None else []),
        *([f"drift {health.drift:.3g}"] if health.drift is not None else []),
    ]
    return counts + (f"  ({', '.join(parts)}, medians)" if parts else "")


def device_line(one: DeviceView) -> str:
    """What is worth saying of a device."""
    total = one.wire_total_bytes
    fetched = f"{one.wire_bytes:,} of {total:,} bytes" if total > one.wire_bytes else f"{one.wire_bytes:,} bytes"
    parts = [
        f"{one.standing} after {one.failed}" if one.failed else one.standing,
        *([fetched] if one.wire_bytes or total else []),
        *([f"variant {', '.join(one.variants)}"] if one.variants else []),
        *([one.error] if one.error else []),
    ]
    return printable(f"{one.device}: {', '.join(parts)}")


def table(view: Overview, most: int = SHOWN_MAX) -> str:
    """A headline, the rings, and the devices that are most worth looking at."""
    by_need = sorted(view.devices, key=lambda one: (_ORDER.index(one.standing), one.ring, one.device))
    waits = [f"  {view.waits}"] if view.waits else []
    lines = [headline(view), *waits, *ring_lines(view), *(f"  {device_line(one)}" for one in by_need[:most])]
    if len(by_need) > most:
        lines.append(f"  and {len(by_need) - most:,} more; --json tells of all")
    return "\n".join(lines)
