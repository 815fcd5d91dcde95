"""Which devices a question is about: all, one by name, or those that a label query means."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Select, func, select, union

from ferryman.devices.fleet.alerts.rules import SILENT_S
from ferryman.devices.fleet.query.asked import check_texts
from ferryman.devices.fleet.query.left_out import LeftOut
from ferryman.devices.fleet.query.sane import read
from ferryman.devices.fleet.rollout.query import Target, parse_query
from ferryman.devices.fleet.store import tables
from ferryman.devices.fleet.store.store import Store
from ferryman.profiler.report_words import printable
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.messages import Status

IN_MAX = 500
"""Names or numbers in one statement."""
_NAMED = 8
T = TypeVar("T")


@dataclass(frozen=True)
class Known:
    """A device."""

    status: Status
    """What it said of itself; nothing but its name of one that only ever sent records."""
    online: bool
    changed_ns: int
    seen_ns: int

    @property
    def target(self) -> Target:
        """As queries see it."""
        return Target(name=self.status.device, model=self.status.model, labels=self.status.labels)


@dataclass(frozen=True)
class Who:
    """The devices that are meant."""

    known: dict[str, Known]
    """By name."""
    names: frozenset[str] | None = None
    """None: all."""
    sources: tuple[int, ...] | None = None
    """Of `names`, where they are few; None: all are looked at."""

    def means(self, device: str) -> bool:
        """Whether it is one of them."""
        return self.names is None or device in self.names


def is_silent(online: bool, seen_ns: int, now_ns: int) -> bool:
    """Whether a device never said that it went, and was not heard for long."""
    return online and now_ns - seen_ns > SILENT_S * 1e9


def who(store: Store, query: str | None, device: str | None, left_out: LeftOut, *, nobody: bool = False) -> Who:
    """Find them.

    Args:
        store: where.
        query: see `ferryman.devices.fleet.rollout.query`; None: all.
        device: by name; with a query, it must be meant by that too.
        left_out: told of devices whose status is damaged.
        nobody: the query may mean no device, as it may later on.

    Raises:
        CallerError: the query or the name is none, or means no device.
        StoreError: the database cannot be read.
    """
    check_texts(query=query, device=device)
    parsed = None if query is None else parse_query(query)
    table = tables.devices
    wanted = select(table.c.device, table.c.status, table.c.online, table.c.changed_ns, table.c.seen_ns)
    rows = store.read(wanted if device is None else wanted.where(table.c.device == device))
    found = {}
    for name, body, online, changed_ns, seen_ns in sorted(rows, key=lambda row: str(row[0])):
        try:
            found[str(name)] = Known(read(str(body), Status), bool(online), changed_ns, seen_ns)
        except ValueError as error:
            left_out.damaged("status", str(name), error)
    silent = [] if device is not None and rows else store.read(without_status(device))
    for name, seen_ns in silent:
        found[str(name)] = Known(Status(device=str(name), online=False), False, seen_ns or 0, seen_ns or 0)
    known = {name: one for name, one in sorted(found.items()) if parsed is None or parsed.matches(one.target)}
    if query is not None and not known and not nobody and (found or (device is None and not rows)):
        told = f"; {labels_of(found.values())}" if found else ""
        raise CallerError(f"no device is meant by {printable(query)[:100]!r}{_others(store)}{told}")
    if parsed is None and device is None:
        return Who(known)
    if device is not None and not rows and not silent:
        raise CallerError(f"no device {device[:100]!r} in this store{_others(store)}")
    names = frozenset(known) if device is None or parsed is not None else frozenset({device})
    return Who(known, names, sources_of(store, sorted(names)) if len(names) <= IN_MAX else None)


def labels_of(devices: Iterable[Known]) -> str:
    """The labels that there are, in words."""
    names = sorted({name for one in devices for name in one.status.labels})
    if not names:
        return "no device has labels"
    return printable(f"labels are: {', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''}")[:1000]


def without_status(device: str | None) -> Select[Any]:
    """Devices that only ever sent records, and when the last of them arrived; None: all such devices."""
    sources, records = tables.sources, tables.records
    last = (
        select(records.c.received_ns)
        .where(records.c.source == sources.c.id)
        .order_by(records.c.source.desc(), records.c.sequence.desc())
        .limit(1)
        .scalar_subquery()
    )
    told = select(tables.devices.c.device).where(tables.devices.c.device == sources.c.device).exists()
    found = select(sources.c.device, func.max(last)).where(~told).group_by(sources.c.device)
    return found if device is None else found.where(sources.c.device == device)


def _others(store: Store) -> str:
    every = union(select(tables.devices.c.device), select(tables.sources.c.device)).subquery()
    names = [str(name) for (name,) in store.read(select(every.c.device).order_by(every.c.device).limit(_NAMED + 1))]
    if not names:
        return ", nor any other"
    return f"; there are: {', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''}"


def sources_of(store: Store, names: Sequence[str]) -> tuple[int, ...]:
    """Numbers of all their sources."""
    table = tables.sources
    found = []
    for few in in_turn(names):
        rows = store.read(select(table.c.id).where(table.c.device.in_(few)).order_by(table.c.device, table.c.id))
        found += [int(number) for (number,) in rows]
    return tuple(found)


def in_turn(names: Sequence[T]) -> Iterator[Sequence[T]]:
    """So many as one statement takes."""
    for begin in range(0, len(names), IN_MAX):
        yield names[begin : begin + IN_MAX]
