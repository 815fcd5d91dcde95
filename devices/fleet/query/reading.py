"""Records of a kind out of the store as a stream, so that millions take no more memory than thousands.

Samples lie in the store by source and time: they come source by source. All other kinds come in order of time.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Select, select

from ferryman.devices.fleet.query.asked import checked_limit
from ferryman.devices.fleet.query.left_out import LeftOut
from ferryman.devices.fleet.query.sane import read as sane
from ferryman.devices.fleet.query.who import IN_MAX, Who
from ferryman.devices.fleet.query.window import Window
from ferryman.devices.fleet.store import tables
from ferryman.devices.fleet.store.store import Store
from ferryman.runtime.contracts.record import Record

_JOINED = 200
_NEAR = 20
"""Sources whose records are read along their own numbers: what others sent does not matter then."""
T = TypeVar("T")
B = TypeVar("B", bound=Record)


class Stored(NamedTuple):
    """A record as it is stored."""

    device: str
    boot: str
    source: int
    sequence: int
    time_ns: int
    clock: int
    received_ns: int
    body: str

    def name(self) -> str:
        """What the record is called in words."""
        return f"{self.device}, boot {self.boot}, sequence {self.sequence}"

    def order(self) -> tuple[int, int, int]:
        """By time; records of one time in a fixed order."""
        return self.time_ns, self.source, self.sequence


def stored(store: Store, kind: str, within: Window, devices: Who, *, newest_first: bool = False) -> Iterator[Stored]:
    """Records of a kind in a window: samples source by source, others in order of time.

    Args:
        store: where.
        kind: of record.
        within: by `time_ns`.
        devices: of these.
        newest_first: backwards; not of samples.

    Raises:
        StoreError: the database cannot be read.
    """
    named = _Sources(store)
    if kind == tables.SAMPLE:
        numbers = devices.sources if devices.sources is not None else named.all(devices)
        for begin in range(0, len(numbers), IN_MAX):
            yield from named.join(store.stream(samples_of(within, numbers[begin : begin + IN_MAX])))
        return
    near = devices.sources if devices.sources is not None and len(devices.sources) <= _NEAR else None
    for one in named.join(store.stream(others_of(kind, within, near, newest_first=newest_first))):
        if devices.means(one.device):
            yield one


def newest(
    store: Store, kind: str, within: Window, devices: Who, limit: int | None, read: Callable[[Stored], T | None]
) -> tuple[list[T], bool]:
    """The newest that `read` makes something of, the newest first, and whether there are more.

    Raises:
        CallerError: the limit is none.
        StoreError: the database cannot be read.
    """
    limit = checked_limit(limit)
    found = _kept(stored(store, kind, within, devices, newest_first=True), read)
    if kind != tables.SAMPLE:
        ordered = list(found if limit is None else itertools.islice(found, limit + 1))
    elif limit is None:
        ordered = sorted(found, key=lambda pair: pair[0].order(), reverse=True)
    else:
        ordered = heapq.nlargest(limit + 1, found, key=lambda pair: pair[0].order())
    made = [one for _, one in ordered]
    return made[:limit], limit is not None and len(made) > limit


def decoded(one: Stored, what: str, record: type[B], left_out: LeftOut) -> B | None:
    """The body; None of one that is damaged or holds numbers that cannot be, which `left_out` is told."""
    try:
        return sane(one.body, record)
    except ValueError as error:
        left_out.damaged(what, one.name(), error)
        return None


def samples_of(within: Window, sources: Sequence[int]) -> Select[Any]:
    """Samples of some sources, each in order of time."""
    table = tables.records
    return (
        _within(within)
        .where(tables.of_kind(tables.SAMPLE), table.c.source.in_(sources))
        .order_by(table.c.source, table.c.time_ns)
    )


def others_of(kind: str, within: Window, sources: Sequence[int] | None, *, newest_first: bool) -> Select[Any]:
    """Records of a kind that is not `sample`; of few sources, or of all that there are."""
    table = tables.records
    order = (table.c.time_ns, table.c.source, table.c.sequence)
    found = _within(within).order_by(*(key.desc() for key in order) if newest_first else order)
    if sources is None:
        return found.where(tables.of_kind(kind))
    # In words that no index knows, so that the primary key is taken.
    return found.where(table.c.source.in_(sources), table.c.kind.concat("") == kind)


def _within(within: Window) -> Select[Any]:
    table = tables.records
    columns = (table.c.source, table.c.sequence, table.c.time_ns, table.c.clock, table.c.received_ns, table.c.body)
    return select(*columns).where(table.c.time_ns >= within.since_ns, table.c.time_ns < within.until_ns)


def _kept(rows: Iterable[Stored], read: Callable[[Stored], T | None]) -> Iterator[tuple[Stored, T]]:
    for one in rows:
        if (made := read(one)) is not None:
            yield one, made


class _Sources:
    """Device and boot of sources, each asked for once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[int, tuple[str, str]] = {}

    def all(self, devices: Who) -> list[int]:
        """The numbers of all sources of the devices, one device's beside each other."""
        table = tables.sources
        rows = self._store.read(select(table.c.id, table.c.device, table.c.boot).order_by(table.c.device, table.c.id))
        self._known = {number: (str(device), str(boot)) for number, device, boot in rows}
        return [number for number, (device, _) in self._known.items() if devices.means(device)]

    def join(self, rows: Iterable[Any]) -> Iterator[Stored]:
        """Rows with their device and boot."""
        rows = iter(rows)
        while chunk := list(itertools.islice(rows, _JOINED)):
            self._learn({row[0] for row in chunk} - self._known.keys())
            for row in chunk:
                if row[0] in self._known:
                    yield Stored(*self._known[row[0]], row[0], row[1], row[2], row[3], row[4], str(row[5]))

    def _learn(self, numbers: set[int]) -> None:
        if not numbers:
            return
        table = tables.sources
        rows = self._store.read(select(table.c.id, table.c.device, table.c.boot).where(table.c.id.in_(sorted(numbers))))
        self._known |= {number: (str(device), str(boot)) for number, device, boot in rows}
