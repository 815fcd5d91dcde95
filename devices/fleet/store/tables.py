"""The tables of the store, the same in SQLite and PostgreSQL; times are nanoseconds since the Unix epoch.

Whatever reads or writes them goes through `ferryman.devices.fleet.store.store` or a module beside it.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    and_,
    literal_column,
    text,
)

VERSION = 2
"""1 was the SQLite file of ferryman 0.1 before it had sources."""

metadata = MetaData()
_Key = BigInteger().with_variant(Integer, "sqlite")

store = Table("store", metadata, Column("id", Text, nullable=False), Column("version", Integer, nullable=False))
"""One row: the store's random id, and the version of its tables."""

sources = Table(
    "sources",
    metadata,
    Column("id", _Key, primary_key=True, autoincrement=True),
    Column("device", Text, nullable=False),
    Column("boot", Text, nullable=False),
    UniqueConstraint("device", "boot"),
)
"""A run of numbers: one outbox file on one kernel boot."""

SURE, UNSURE, CORRECTED = 0, 1, 2
HOUR_S, DAY_S = 3600, 86400
SAMPLE = "sample"
_SAMPLE, _OTHER = "kind = 'sample'", "kind <> 'sample'"

records = Table(
    "records",
    metadata,
    Column("source", BigInteger, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("time_ns", BigInteger, nullable=False),  # the best that is known: that of the device, or corrected
    Column("recorded_ns", BigInteger, nullable=False),  # as the device's clock said; never changed
    Column("uptime_ns", BigInteger),  # NULL: schema 1
    Column("clock", SmallInteger, nullable=False),  # SURE, UNSURE or CORRECTED
    Column("received_ns", BigInteger, nullable=False),
    Column("body", Text, nullable=False),  # JSON, byte for byte as it came
    PrimaryKeyConstraint("source", "sequence"),
    # Samples are many and asked for by device; everything else is little and asked for by kind.
    Index("samples_by_time", "source", "time_ns", sqlite_where=text(_SAMPLE), postgresql_where=text(_SAMPLE)),
    Index("others_by_time", "kind", "time_ns", sqlite_where=text(_OTHER), postgresql_where=text(_OTHER)),
)


def of_kind(kind: str) -> ColumnElement[bool]:
    """Records of a kind, in the words that let both databases use the index for it."""
    if kind == SAMPLE:
        return records.c.kind == literal_column(f"'{SAMPLE}'")
    return and_(other_kinds(), records.c.kind == kind)


def other_kinds() -> ColumnElement[bool]:
    """Records that are no samples."""
    return records.c.kind != literal_column(f"'{SAMPLE}'")


latest = Table(
    "latest",
    metadata,
    Column("device", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("time_ns", BigInteger, nullable=False),
    Column("body", Text, nullable=False),
)
"""The newest record of the kinds in LIVE of each device; what is replayed later never overwrites what is newer."""

LIVE = frozenset({"sample", "update", "slots"})

devices = Table(
    "devices",
    metadata,
    Column("device", Text, primary_key=True),
    Column("status", Text, nullable=False),  # JSON of the last `Status`
    Column("online", Boolean, nullable=False),
    Column("birth", BigInteger, nullable=False),  # an offline status of an earlier birth is ignored
    Column("changed_ns", BigInteger, nullable=False),  # when `online` last changed
    Column("seen_ns", BigInteger, nullable=False),  # when anything of it last arrived
)

clocks = Table(
    "clocks",
    metadata,
    Column("device", Text, primary_key=True),
    Column("kernel_boot", Text, primary_key=True),
    Column("offset_ns", BigInteger, nullable=False),
    Column("uptime_ns", BigInteger, nullable=False),  # of the fix: the newest counts
)
"""The last `ClockFix` of each kernel boot."""

quarantine = Table(
    "quarantine",
    metadata,
    Column("sha256", LargeBinary, primary_key=True),
    Column("topic", Text, nullable=False),
    Column("raw", LargeBinary, nullable=False),
    Column("reason", Text, nullable=False),
    Column("received_ns", BigInteger, nullable=False),
    Column("times", BigInteger, nullable=False),
    Index("quarantine_by_time", "received_ns"),
)

dirty = Table(
    "dirty",
    metadata,
    Column("device", Text, primary_key=True),
    Column("span_s", Integer, primary_key=True),
    Column("start_s", BigInteger, primary_key=True),
)
"""Hours (of `time_ns`) of a device with samples that its rollups do not hold yet, and days with such hours. Whoever
reads or deletes what rollups are made of holds the hour's or day's row here, present or not, until it commits."""

gone = Table(
    "gone",
    metadata,
    Column("source", BigInteger, primary_key=True),
    Column("first", BigInteger, primary_key=True),
    Column("last", BigInteger, nullable=False),
)
"""Sequences whose samples were taken in and deleted since: sent again, they do not count again."""

rollups = Table(
    "rollups",
    metadata,
    Column("device", Text, primary_key=True),
    Column("span_s", Integer, primary_key=True),  # 3600 or 86400
    Column("start_s", BigInteger, primary_key=True),
    Column("metric", Text, primary_key=True),  # of Sample.values; latency_ms: of all in Sample.latencies_ms
    Column("package", Text, primary_key=True),  # SHA-256, or empty
    Column("count", BigInteger, nullable=False),
    Column("total", Float(53), nullable=False),
    Column("least", Float(53), nullable=False),
    Column("most", Float(53), nullable=False),
    Column("sketch", LargeBinary, nullable=False),  # serialised KLL of floats: merges over time and devices
    Column("sealed", SmallInteger, nullable=False),  # 1: what it was made of is deleted; more is merged in
    Index("rollups_by_time", "span_s", "start_s", "metric"),
)

alerts = Table(
    "alerts",
    metadata,
    Column("id", _Key, primary_key=True, autoincrement=True),
    Column("device", Text, nullable=False),
    Column("rule", Text, nullable=False),
    Column("subject", Text, nullable=False),  # what of the device, such as a tensor or a package; may be empty
    Column("severity", Text, nullable=False),  # warning or critical
    Column("text", Text, nullable=False),
    Column("value", Float(53)),
    Column("bound", Float(53)),
    Column("since_ns", BigInteger, nullable=False),
    Column("until_ns", BigInteger),  # NULL: it still holds
    Column("told_ns", BigInteger),  # when everybody who is to be told had been, of the last change
)
Index(
    "alerts_open",
    alerts.c.device,
    alerts.c.rule,
    unique=True,  # however many collectors look
    sqlite_where=alerts.c.until_ns.is_(None),
    postgresql_where=alerts.c.until_ns.is_(None),
)
Index(
    "alerts_untold",
    alerts.c.id,
    sqlite_where=alerts.c.told_ns.is_(None),
    postgresql_where=alerts.c.told_ns.is_(None),
)

silences = Table(
    "silences",
    metadata,
    Column("id", _Key, primary_key=True, autoincrement=True),
    Column("devices", Text, nullable=False),  # a query
    Column("rules", Text, nullable=False),  # names with commas between; empty: all
    Column("by", Text, nullable=False),
    Column("why", Text, nullable=False),
    Column("since_ns", BigInteger, nullable=False),
    Column("until_ns", BigInteger, nullable=False),
    Column("ended_ns", BigInteger),  # NULL: nobody ended it early
    Column("ended_by", Text),
)
"""Who wants nobody to be told of which alerts until when; not there before a ferryman that knows it has written."""

references = Table(
    "references",
    metadata,
    Column("device", Text, primary_key=True),
    Column("serves", Text, primary_key=True),  # package, variant and interpreter
    Column("made_ns", BigInteger, nullable=False),
    Column("body", Text, nullable=False),  # JSON of a `Drift`: the sketches of the first ones merged
)
"""What a package was given and answered on a device when it began to serve there: what drift is measured from."""
