"""What a rollout is, as it is kept on disk: a plan that never changes, how far it is, and a row for each device."""

from __future__ import annotations

from typing import Literal

from ferryman.runtime.contracts.errors import WireError
from ferryman.runtime.contracts.record import Record
from ferryman.runtime.contracts.rollout import Desired, Measured, Reported, Window
from ferryman.runtime.contracts.slot import HealthRules

Phase = Literal[
    "running",
    "paused",  # by hand: no further device is asked
    "approval",  # a ring did well, and the next one waits for a hand
    "returning",  # devices are asked to go back to what they had
    "done",
    "halted",  # past a threshold
    "aborted",  # by hand
]
ENDED: frozenset[Phase] = frozenset({"done", "halted", "aborted"})
Verb = Literal["pause", "resume", "abort", "roll-back", "retry", "approve"]
Standing = Literal[
    "pending",  # not asked yet
    "asked",  # and has not answered
    "waiting",
    "downloading",
    "installing",
    "trial",
    "confirmed",
    "rolled-back",
    "refused",
    "failed",
    "late",  # did not get as far as installing within the time of its ring; counted apart, it may still come
    "lost",  # began to install and was not heard of again within the time of its ring; a failure
    "superseded",  # a later rollout, or another host, has asked it for something else
    "returning",
    "returned",
    "stuck",  # could not go back
    "kept",  # had nothing to go back to
]
FAILURES: frozenset[Standing] = frozenset({"rolled-back", "refused", "failed", "lost"})
UNDER_WAY: frozenset[Standing] = frozenset({"asked", "waiting", "downloading", "installing", "trial"})
_SETTLED = {"confirmed", "rolled-back", "refused", "failed"}
_BACK: dict[str | None, Standing] = {
    "confirmed": "returned",
    "rolled-back": "stuck",
    "refused": "stuck",
    "failed": "stuck",
}
VERSION_MAX = 1 << 52
"""No host counts so far; a message with a higher version is ignored, so that there is always a next one."""
GRACE_S = 60.0
"""Once the broker is there again, devices have so long to be, before they are called late or lost."""


class Thresholds(Record):
    """What halts a rollout; each ring that was opened is held against all of them."""

    failures_max: str = "5%"
    """Of a ring's devices that may fail: a number, or a share that is rounded down."""
    slower_max: float | None = 1.5
    """Times the package before, the median over a ring of each device's median latency; None: no matter."""
    energy_max: float | None = 1.5
    """The same of the energy of a call, where devices measure it."""
    drift_max: float | None = None
    """The median over a ring of the distance of outputs from the package before."""


class Plan(Record, kw_only=True):
    """What was asked for."""

    id: str
    """Sorts by the time it was made."""
    release: str
    package_sha256: str
    query: str
    rings: tuple[str, ...]
    """Totals of devices, see `ferryman.devices.fleet.rollout.rings`."""
    thresholds: Thresholds = Thresholds()
    health: HealthRules = HealthRules()
    pick: str = "first"
    window: Window | None = None
    update_max_bytes: int | None = None
    force: bool = False
    soak_s: float = 60.0
    """From when a ring has answered to when the next is asked."""
    ring_timeout_s: float = 3600.0
    """From when a device is asked; after it, it is late or lost."""
    parallel: int | None = None
    """Devices under way at the same time, at most; None: a whole ring."""
    manual: bool = False
    """Every ring after the first waits for a hand."""
    roll_back: bool = True
    """Past a threshold, devices go back to what they had."""
    broker: str = ""
    """Its address, without password."""
    created_at_ns: int
    created_by: str


class Progress(Record):
    """How far a rollout is."""

    phase: Phase = "running"
    ring: int = 0
    """The last that was opened."""
    rings: int = 1
    """How many there are."""
    approved: int = 0
    """The last ring that a hand has let go."""
    settled_at_ns: int | None = None
    """When all of the ring had answered, or were late; the soak counts from there."""
    ending: Phase = "halted"
    """What `returning` becomes."""
    why: str = ""
    """Why it is in this phase, for people."""


class Failure(Record):
    """What a device failed with."""

    standing: Standing
    error: WireError | None = None


class Row(Record, kw_only=True):
    """A device in a rollout."""

    device: str
    ring: int
    kind: str = ""
    """Its model; empty: not known."""
    offline: bool = False
    """It was not there when the rollout was made."""
    state: Literal["pending", "asked", "withdrawn", "cleared", "superseded"] = "pending"
    """Asked to go back: withdrawn; asked for nothing any more: cleared."""
    version: int = 0
    """Of the last `Desired` it was sent."""
    asked_at_ns: int = 0
    tries: int = 0
    force: bool = False
    variants: tuple[str, ...] = ()
    all_variants: bool = False
    """What its class measured does not hold for this one: it fetches all."""
    before_release: str | None = None
    before_sha256: str | None = None
    """What it served when it was first asked."""
    report: Reported | None = None
    """The last for this version."""
    heard_at_ns: int = 0
    """When it came; host clock."""
    failed: Failure | None = None
    """What it failed with, before it was asked to go back; None: it did not."""
    nonsense: str = ""
    """Why what it said last was no report, and ignored."""


class Entry(Record):
    """A line of the audit log."""

    at_ns: int
    who: str
    what: str
    why: str = ""
    device: str | None = None


class Found(Record):
    """What a device found on a package's golden vectors."""

    device: str
    kind: str
    measured: tuple[Measured, ...]


class Changes(Record):
    """What one step of a rollout changed; it is committed whole, and then `Desired`s of changed rows are sent."""

    progress: Progress
    rows: tuple[Row, ...] = ()
    entries: tuple[Entry, ...] = ()
    found: tuple[Found, ...] = ()


def standing(row: Row, plan: Plan, now_ns: int, heard_since_ns: int = 0) -> Standing:
    """How a device stands.

    Args:
        row: of the device.
        plan: of the rollout.
        now_ns: wall clock of the host.
        heard_since_ns: since when the broker is connected; what was not heard before is no device's fault.
    """
    if row.state in {"pending", "superseded"}:
        return row.state
    if row.state == "cleared":
        return "kept"
    state = row.report.state if row.report else None
    if row.state == "withdrawn" and state in _BACK:
        return _BACK[state]
    if state == "confirmed" and row.report and row.report.package_sha256 != plan.package_sha256:
        return "failed"
    installs = row.state == "asked" and state in {"installing", "trial"}
    timeout_s = plan.ring_timeout_s + (plan.health.window_s if installs else 0)
    since_ns = row.heard_at_ns if installs else row.asked_at_ns
    heard_ns = heard_since_ns + round(min(GRACE_S, plan.ring_timeout_s) * 1e9)
    if state in _SETTLED or now_ns < max(since_ns + round(timeout_s * 1e9), heard_ns):
        return "returning" if row.state == "withdrawn" else state or "asked"
    return "lost" if installs else "late"


def desired_of(row: Row, plan: Plan) -> Desired | None:
    """What the device is to be told; None: nothing, what it was told before is taken back."""
    if row.state == "withdrawn":
        return Desired(
            version=row.version,
            rollout=plan.id,
            release=row.before_release or "",
            package_sha256=row.before_sha256 or "",
            previous=True,
        )
    if row.state != "asked":
        return None
    return Desired(
        version=row.version,
        rollout=plan.id,
        release=plan.release,
        package_sha256=plan.package_sha256,
        pick=plan.pick,
        variants=row.variants,
        health=plan.health,
        update_max_bytes=plan.update_max_bytes,
        window=plan.window,
        force=row.force or plan.force,
    )
