"""How far what a device is given and answers has drifted since its package began to serve there.

The first inferences of a package, variant and interpreter on a device are its reference (`Reference` tells how many),
merged into one record and kept in the store: so a shift that lasts does not become the new normal, nor does a restart
forget it. Later records, gathered until they are of INFERENCES_MIN, are each compared with it.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import msgspec
from sqlalchemy import Connection, delete, insert, select

from ferryman.devices.fleet.alerts.reading import News
from ferryman.devices.fleet.store import tables
from ferryman.devices.fleet.store.store import Store
from ferryman.profiler.drift import load
from ferryman.profiler.drift_distance import distances
from ferryman.runtime.contracts.drift import Drift, DriftSketch
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import Record, decode, encode

INFERENCES_MIN = 100
"""Fewer tell nothing of drift: values of one inference resemble each other."""
REFERENCES_MAX = 16
"""Of a device: packages, variants and interpreters; the newest stay."""
OLD_S = 86_400.0
"""A distance that was found longer ago tells nothing of now."""


class Reference(Record, forbid_unknown_fields=True):
    """What a drift reference takes at least."""

    inferences: Annotated[int, msgspec.Meta(ge=INFERENCES_MIN, le=10_000_000)] = 1000
    over_s: Annotated[float, msgspec.Meta(ge=0, le=30 * 86_400)] = 3600.0
    """From its first inference to its last: what a device sees differs from minute to minute."""

    def is_met(self, drift: Drift) -> bool:
        """Whether the record is enough."""
        return drift.inferences >= self.inferences and drift.to_ns - drift.from_ns >= self.over_s * 1e9


class Drifted(NamedTuple):
    """The tensor that is the farthest."""

    package_name: str
    tensor: str
    distance: float
    inferences: int
    found_s: float


class DriftWatch:
    """The newest distance of each device (by row)."""

    def __init__(self) -> None:
        self.reference = Reference()
        self.found: dict[int, Drifted] = {}
        self._gathered: dict[tuple[int, str], Drift] = {}

    def take(self, store: Store, row: int, news: News) -> None:
        """Take in a drift record of a device.

        Raises:
            ValueError: its body is none.
            StoreError: the store cannot be read or written.
            DeviceError: the sketch library is not installed.
        """
        drift = decode(news.body.encode(), Drift)
        serves = f"{drift.package_sha256}/{drift.variant}/{drift.interpreter}"
        reference = _reference(store, news.device, serves)
        if reference is None or not self.reference.is_met(reference):
            _keep(store, news.device, serves, merged([reference, drift] if reference else [drift]))
            return
        gathered = self._gathered.pop((row, serves), None)
        if gathered is not None and drift.to_ns - gathered.to_ns < OLD_S * 1e9:
            drift = merged([gathered, drift])
        if drift.inferences < INFERENCES_MIN:
            self._gathered[row, serves] = drift
            return
        try:
            apart = distances([reference], [drift])
        except CallerError:  # no tensor holds values
            return
        worst = max(apart, key=lambda one: one.kolmogorov_smirnov)
        self.found[row] = Drifted(
            drift.package_name, worst.name, worst.kolmogorov_smirnov, drift.inferences, news.received_ns / 1e9
        )


def merged(records: list[Drift]) -> Drift:
    """One record for several of one package, variant and interpreter; tensors that not all have are left out.

    Raises:
        DeviceError: the sketch library is not installed.
    """
    first, last = records[0], records[-1]
    tensors = []
    for tensor in first.tensors:
        same = [t for one in records for t in one.tensors if (t.name, t.role) == (tensor.name, tensor.role)]
        if len(same) == len(records):
            tensors.append(_merge(same))
    return Drift(
        package_name=first.package_name,
        package_sha256=first.package_sha256,
        variant=first.variant,
        interpreter=first.interpreter,
        from_ns=first.from_ns,
        to_ns=max(first.to_ns, last.to_ns),
        inferences=sum(one.inferences for one in records),
        library=last.library,
        tensors=tuple(tensors),
        left_out=last.left_out,
    )


def _merge(sketches: list[DriftSketch]) -> DriftSketch:
    if len(sketches) == 1:
        return sketches[0]
    library = load()
    whole = library.kll_floats_sketch.deserialize(sketches[0].sketch)  # checked when the record was decoded
    for sketch in sketches[1:]:
        whole.merge(library.kll_floats_sketch.deserialize(sketch.sketch))
    counts = [(one.values - one.nan - one.infinite, one) for one in sketches]
    finite = sum(count for count, _ in counts)
    held = [(count, one.least, one.most, one.mean) for count, one in counts]
    full = [(count, least, most, mean) for count, least, most, mean in held if least is not None]
    rough = whole.is_estimation_mode()
    least = min((one for _, one, _, _ in full), default=None)
    most = max((one for _, _, one, _ in full if one is not None), default=None)
    return DriftSketch(
        name=sketches[0].name,
        role=sketches[0].role,
        dtype=sketches[0].dtype,
        values=sum(one.values for one in sketches),
        nan=sum(one.nan for one in sketches),
        infinite=sum(one.infinite for one in sketches),
        least=least,
        most=most,
        mean=sum(mean * (count / finite) for count, _, _, mean in full if mean is not None) if finite else None,
        sketch=whole.serialize(),
        rank_error=whole.normalized_rank_error(False) if rough else 0.0,
        share_error=whole.normalized_rank_error(True) if rough else 0.0,
    )


def _reference(store: Store, device: str, serves: str) -> Drift | None:
    kept = tables.references.c
    found = store.read(select(kept.body).where(kept.device == device, kept.serves == serves))
    if not found:
        return None
    try:
        return decode(str(found[0][0]).encode(), Drift)
    except ValueError:  # damaged: a new one is begun
        return None


def _keep(store: Store, device: str, serves: str, reference: Drift) -> None:
    kept = tables.references
    row = {"device": device, "serves": serves, "made_ns": reference.from_ns, "body": encode(reference).decode()}

    def work(connection: Connection) -> None:
        connection.execute(delete(kept).where(kept.c.device == device, kept.c.serves == serves))
        connection.execute(insert(kept).values(row))
        newest = select(kept.c.serves).where(kept.c.device == device).order_by(kept.c.made_ns.desc())
        if stale := connection.execute(newest.offset(REFERENCES_MAX)).scalars().all():
            connection.execute(delete(kept).where(kept.c.device == device, kept.c.serves.in_(stale)))

    store.write(work)
