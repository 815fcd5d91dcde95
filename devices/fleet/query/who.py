"""Which devices a question is about: all, one by name, or those that a label query means."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import select

from ferryman.devices.fleet.query.left_out import LeftOut
from ferryman.devices.fleet.rollout.query import Target, parse_query
from ferryman.devices.fleet.store import tables
from ferryman.devices.fleet.store.store import Store
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import decode

IN_MAX = 500
"""Names or numbers in one statement."""
_NAMED = 8
T = TypeVar("T")


@dataclass(frozen=True)
class Known:
    """A device that said something of itself."""

    status: Status
    online: bool
    changed_ns: int
    seen_ns: int


@dataclass(frozen=True)
class Who:
    """The devices that are meant."""

    known: dict[str, Known]
    """By name; a device that only ever sent records is not here."""
    names: frozenset[str] | None = None
    """None: all."""
    sources: tuple[int, ...] | None = None
    """Of `names`, where they are few; None: all are looked at."""

    def means(self, device: str) -> bool:
        """Whether it is one of them."""
        return self.names is None or device in self.names


def who(store: Store, query: str | None, device: str | None, left_out: LeftOut) -> Who:
    """Find them.

    Args:
        store: where.
        query: see `ferryman.devices.fleet.rollout.query`; None: all.
        device: by name; with a query, it must be meant by that too.
        left_out: told of devices whose status is damaged.

    Raises:
        CallerError: the query is none, or there is no such device.
        StoreError: the database cannot be read.
    """
    parsed = None if query is None else parse_query(query)
    table = tables.devices
    wanted = select(table.c.device, table.c.status, table.c.online, table.c.changed_ns, table.c.seen_ns)
    rows = store.read(wanted if device is None else wanted.where(table.c.device == device))
    known = {}
    for name, body, online, changed_ns, seen_ns in sorted(rows, key=lambda row: str(row[0])):
        try:
            status = decode(str(body).encode(), Status)
        except ValueError as error:
            left_out.damaged("status", str(name), error)
            continue
        if parsed is None or parsed.matches(Target(name=name, model=status.model, labels=status.labels)):
            known[str(name)] = Known(status, bool(online), changed_ns, seen_ns)
    if parsed is None and device is None:
        return Who(known)
    if device is not None and not rows and not _sends(store, device):
        raise CallerError(f"no device {device[:100]!r} in this store{_others(store)}")
    names = frozenset(known) if device is None or parsed is not None else frozenset({device})
    return Who(known, names, sources_of(store, sorted(names)) if len(names) <= IN_MAX else None)


def _sends(store: Store, device: str) -> bool:
    return bool(store.read(select(tables.sources.c.id).where(tables.sources.c.device == device).limit(1)))


def _others(store: Store) -> str:
    names = [str(name) for (name,) in store.read(select(tables.devices.c.device).order_by("device").limit(_NAMED + 1))]
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
