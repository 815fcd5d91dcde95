"""What a rollout would do, before anything is sent or written down."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import median
from typing import TYPE_CHECKING

from ferryman.devices.fleet.rollout.records import Plan, Row
from ferryman.devices.fleet.rollout.start import Known
from ferryman.devices.fleet.rollout.words import counted, shorten
from ferryman.runtime.contracts.record import Record
from ferryman.runtime.say import printable

if TYPE_CHECKING:
    from ferryman.devices.fleet.rollout.cost import Costs

_NAMED_MAX = 20


class DevicePreview(Record):
    """A device."""

    device: str
    ring: int
    """From 1 on."""
    kind: str
    online: bool
    release: str | None
    """That serves; None: none, or one that came by another way."""
    package_sha256: str | None
    wire_bytes: int
    """What it would fetch of all variants, at most; metadata aside."""


class Preview(Record):
    """A rollout."""

    plan: Plan
    package_name: str
    devices: tuple[DevicePreview, ...]

    @property
    def wire_bytes(self) -> int:
        """Of all devices."""
        return sum(one.wire_bytes for one in self.devices)


def preview(plan: Plan, rows: Iterable[Row], known: Mapping[str, Known], costs: Costs) -> Preview:
    """Put it together.

    Raises:
        CallerError: the repository has not the release.
        RepositoryError: it is damaged.
    """
    release = costs.release(plan.release)
    return Preview(
        plan=plan,
        package_name=release.package_name,
        devices=tuple(
            DevicePreview(
                device=row.device,
                ring=row.ring + 1,
                kind=row.kind,
                online=known[row.device].online,
                release=known[row.device].release,
                package_sha256=known[row.device].package_sha256,
                wire_bytes=costs.wire_bytes(release, known[row.device].package_sha256),
            )
            for row in rows
        ),
    )


def describe(found: Preview) -> str:
    """Several lines."""
    plan = found.plan
    what = f"{plan.release} ({found.package_name}, {plan.package_sha256[:12]})"
    lines = [f"{what} to {shorten(plan.query)}: {counted(len(found.devices), 'device')}"]
    for ring in sorted({one.ring for one in found.devices}):
        its = [one for one in found.devices if one.ring == ring]
        offline = sum(not one.online for one in its)
        names = ", ".join(one.device for one in its[:_NAMED_MAX])
        more = f" and {len(its) - _NAMED_MAX:,} more" if len(its) > _NAMED_MAX else ""
        off = f", {offline:,} of them offline" if offline else ""
        lines.append(
            f"  ring {ring}: {counted(len(its), 'device')}{off}, at most "
            f"{sum(one.wire_bytes for one in its):,} bytes, {median(one.wire_bytes for one in its):,.0f} by the median "
            f"device: {names}{more}"
        )
    if not any(one.online for one in found.devices if one.ring == 1):
        lines.append("  nobody of ring 1 is online: it waits until one of them has come and confirmed the release")
    lines.append(f"  in all at most {found.wire_bytes:,} bytes, metadata aside; nothing was sent")
    return "\n".join(map(printable, lines))
