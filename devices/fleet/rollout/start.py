"""Begin a rollout: find the devices, cut rings, write it down. Nothing is sent before somebody drives it."""

from __future__ import annotations

import getpass
import secrets
import socket
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ferryman.devices import topics
from ferryman.devices.broker import BrokerConfig, parse_broker
from ferryman.devices.fleet.inventory import LOCAL, read_devices
from ferryman.devices.fleet.rollout import rings as cutting
from ferryman.devices.fleet.rollout.link import FleetLink
from ferryman.devices.fleet.rollout.options import as_record, parse_duration, parse_window
from ferryman.devices.fleet.rollout.query import Target, parse_query
from ferryman.devices.fleet.rollout.records import Entry, Plan, Progress, Row, Thresholds
from ferryman.devices.fleet.rollout.store import RolloutStore
from ferryman.devices.fleet.rollout.words import counted, shorten
from ferryman.devices.sizes import parse_size
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import Record, decode, encode
from ferryman.runtime.contracts.rollout import Reported, Window
from ferryman.runtime.contracts.slot import HealthRules, parse_pick

CONNECT_S = 10.0
TIMEOUT_S = 3600.0
WINDOW_TIMEOUT_S = 26 * 3600.0
"""A device that may install for an hour a night gets one night, whenever the rollout begins."""
_MATCH_LISTED = 8


class Known(Record):
    """A device that there is, as the devices file and the broker tell."""

    target: Target
    online: bool = False
    package_sha256: str | None = None
    """That serves; None: none, or it was never heard of."""
    release: str | None = None


def known_devices(broker: BrokerConfig, devices_file: Path | str | None = None) -> list[Known]:
    """Devices of the devices file that are at this broker, and all that the broker has ever heard of, by name.

    Raises:
        CallerError: the devices file cannot be read.
        LinkError: the broker cannot be reached.
    """
    listed = {
        name: device.labels
        for name, device in read_devices(devices_file).items()
        if name != LOCAL and topics.is_name(name) and _is_at(device.broker, broker)
    }
    statuses: dict[str, Status] = {}
    reports: dict[str, Reported] = {}
    link = FleetLink(broker)
    link.start(CONNECT_S)
    try:
        while not link.settled():
            for heard in link.take():
                if isinstance(heard.body, Status):
                    statuses[heard.device] = heard.body
                elif isinstance(heard.body, Reported):
                    reports[heard.device] = heard.body
    finally:
        link.stop()
    names = sorted({*listed, *statuses, *reports})
    return [_known(name, listed.get(name, {}), statuses.get(name), reports.get(name)) for name in names]


def _is_at(url: str | None, broker: BrokerConfig) -> bool:
    """Whether a device of the file talks to this broker, as far as the file tells."""
    if url is None:
        return True
    said = parse_broker(url)
    return (said.host, said.port) == (broker.host, broker.port)


def _known(name: str, labels: Mapping[str, str], status: Status | None, report: Reported | None) -> Known:
    model = (report.model if report else "") or (status.model if status else "")
    serves = status.package_sha256 if status else None
    if serves is None and report:
        serves = report.package_sha256
    return Known(
        target=Target(name=name, model=model, labels={**(status.labels if status else {}), **labels}),
        online=status is not None and status.online,
        package_sha256=serves,
        release=report.release if report and report.package_sha256 == serves else None,
    )


def select(known: Iterable[Known], query: str) -> list[Known]:
    """Those that a query means.

    Raises:
        CallerError: it is no query, or means none of them.
    """
    parsed = parse_query(query)
    known = list(known)
    found = [one for one in known if parsed.matches(one.target)]
    if not found:
        names = ", ".join(one.target.name for one in known[:_MATCH_LISTED]) or "none"
        more = f" and {len(known) - _MATCH_LISTED} more" if len(known) > _MATCH_LISTED else ""
        meant = _labelled(query.strip(), known)
        raise CallerError(f"query {shorten(query)!r} means no device; {meant}there are: {names}{more}")
    return found


def _labelled(value: str, known: Iterable[Known]) -> str:
    """What somebody may have meant who wrote the value of a label alone."""
    labels = sorted({label for one in known for label, found in one.target.labels.items() if found == value})
    return f"did you mean {' or '.join(f'{label}={value}' for label in labels[:3])}? " if labels else ""


def make_plan(
    release: str,
    package_sha256: str,
    query: str,
    *,
    rings: str = cutting.DEFAULT,
    thresholds: Thresholds | Mapping[str, Any] | None = None,
    health: HealthRules | Mapping[str, Any] | None = None,
    pick: str = "first",
    window: Window | str | None = None,
    update_max_bytes: int | str | None = None,
    force: bool = False,
    soak_s: float | str = 60.0,
    ring_timeout_s: float | str | None = None,
    parallel: int | None = None,
    manual: bool = False,
    roll_back: bool = True,
    broker: str = "",
    now_ns: int | None = None,
) -> Plan:
    """Put together what is asked for; arguments are the fields of `Plan`, or as the command line takes them.

    Raises:
        CallerError: an option cannot be read, is of the wrong type, or makes no sense.
    """
    thresholds = as_record("thresholds", Thresholds() if thresholds is None else thresholds, Thresholds)
    health = as_record("health", HealthRules() if health is None else health, HealthRules)
    window = None if window is None else parse_window(window)
    cutting.parse_failures(thresholds.failures_max)
    parse_query(query)
    parse_pick(pick)
    now_ns = time.time_ns() if now_ns is None else now_ns
    if ring_timeout_s is None:
        ring_timeout_s = WINDOW_TIMEOUT_S if window else TIMEOUT_S
    plan = Plan(
        id=f"{datetime.fromtimestamp(now_ns / 1e9, UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}",
        release=release,
        package_sha256=package_sha256,
        query=query,
        rings=cutting.parse_rings(rings),
        thresholds=thresholds,
        health=health,
        pick=pick,
        window=window,
        update_max_bytes=None if update_max_bytes is None else parse_size(update_max_bytes),
        force=force,
        soak_s=parse_duration(soak_s),
        ring_timeout_s=parse_duration(ring_timeout_s),
        parallel=parallel,
        manual=manual,
        roll_back=roll_back,
        broker=broker,
        created_at_ns=now_ns,
        created_by=whoami(),
    )
    _check_types(plan)
    if plan.ring_timeout_s <= 0 or (parallel is not None and parallel <= 0):
        raise CallerError("a ring's timeout and the devices at a time are more than 0")
    return plan


def _check_types(plan: Plan) -> None:
    """See that it can be read again once it is written down.

    Raises:
        CallerError: a field is of another type than it should be.
    """
    try:
        again = decode(encode(plan), Plan)
    except (ValueError, TypeError, OverflowError) as error:
        raise CallerError(f"an option of the rollout: {error}") from error
    if again != plan:
        raise CallerError("an option of the rollout is not what it is once it is written down; see `make_plan`")


def cut(plan: Plan, known: Iterable[Known]) -> list[Row]:
    """A row for each device, in the order in which they are asked."""
    by_name = {one.target.name: one for one in known}
    offline = frozenset(name for name, one in by_name.items() if not one.online)
    release = f"{plan.release}\0{plan.package_sha256}"
    assigned = cutting.assign(release, plan.rings, (one.target for one in by_name.values()), offline)
    return [
        Row(device=name, ring=ring, kind=by_name[name].target.model, offline=name in offline)
        for name, ring in assigned.items()
    ]


def begin(store: RolloutStore, plan: Plan, rows: list[Row]) -> None:
    """Write a rollout down; `drive` runs it.

    Raises:
        StoreError: the disk is full or broken.
    """
    rings = 1 + max((row.ring for row in rows), default=0)
    what = f"{plan.release} ({plan.package_sha256[:12]}) to {shorten(plan.query)}: "
    what += f"{counted(len(rows), 'device')} in {counted(rings, 'ring')}"
    entry = Entry(at_ns=plan.created_at_ns, who=plan.created_by, what="start", why=what)
    store.add(plan, Progress(rings=rings), rows, entry)


def whoami() -> str:
    """Who asks, for the audit log."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a number that no account has
        user = "somebody"
    return f"{user}@{socket.gethostname()}"
