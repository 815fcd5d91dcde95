"""What one device sends must not stop what the others send, in both databases."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import func, select

from ferryman.devices.fleet.collector.collector import sort
from ferryman.devices.fleet.collector.inbox import Delivery
from ferryman.devices.fleet.store import clocks, insert, rollup
from ferryman.devices.fleet.store.engine import RefusedError
from ferryman.devices.fleet.store.rollup import roll_up
from ferryman.devices.fleet.store.sketches import NAMES_MAX, PACKAGES_MAX
from ferryman.devices.fleet.store.store import Arrived, Batch, Row
from ferryman.devices.fleet.store.tables import DAY_S, HOUR_S, devices, dirty, records, rollups, sources
from ferryman.runtime.contracts.envelope import TIME_MAX_NS
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import encode
from ferryman.runtime.contracts.telemetry import METRICS, Sample

H = HOUR_S * 10**9
NOW = 20_000 * DAY_S * 10**9
SAMPLE = {"period_s": 60.0, "values": {"cpu_percent": 1.0}}
LONG = "".join(chr(33 + n * 7919 % 90) for n in range(20_000)).replace('"', "x").replace("\\", "x")


def deliver(store, *messages: tuple[str, bytes]):
    """As the collector does, with what it put into quarantine."""
    batch, _, _ = sort(Delivery(None, topic.encode(), b"\0\1", payload) for topic, payload in messages)  # type: ignore[arg-type]
    store.insert(batch, NOW)
    return batch.bad


def telemetry(device: str, *items: list[object]) -> tuple[str, bytes]:
    envelope = {"schema": 2, "device": device, "boot": "b.k", "items": items}
    return f"ferryman/v1/{device}/telemetry", json.dumps(envelope).encode()


def status(**fields: object) -> tuple[str, bytes]:
    return "ferryman/v1/evil/status", json.dumps(
        {"type": "status", "device": "evil", "online": True, **fields}
    ).encode()


GOOD = telemetry("good", [1, "sample", NOW - 5 * H, 1, True, SAMPLE])


def stored(store) -> set[str]:
    query = select(sources.c.device).join(records, records.c.source == sources.c.id)
    return {device for (device,) in store.read(query)}


@pytest.mark.parametrize(
    "fields",
    [
        {"birth": 2**63},
        {"birth": -1},
        {"birth": -(2**63) - 1},
        {"birth": 10**30},
        {"outbox_pending": 10**30},
        {"outbox_dropped": -1},
        {"labels": {"a": "x" * 900_000}},
        {"labels": {str(n): "" for n in range(1000)}},
        {"model": "x" * 100_000},
        {"boot": "x" * 1000},
    ],
    ids=str,
)
def test_a_status_beyond_all_bounds_is_quarantined(both, fields):
    (bad,) = deliver(both, GOOD, status(**fields))
    assert "status" in bad.topic
    assert stored(both) == {"good"}
    assert both.devices() == []


def test_the_largest_birth_is_taken(both):
    assert not deliver(both, status(birth=2**63 - 1))
    assert both.read(select(devices.c.birth))[0][0] == 2**63 - 1


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("clock", {"kernel_boot": "k\0", "offset_ns": 5}),
        ("clock", {"kernel_boot": LONG, "offset_ns": 5}),
        ("sample", {**SAMPLE, "package_sha256": "a\0b"}),
        ("sample", {**SAMPLE, "package_sha256": LONG}),
        ("sample", {"period_s": 1, "values": {"cpu_percent": 1e16}}),
        ("sample", {"period_s": 1, "values": {"inferences": -1}}),
        ("sample", {"period_s": 1, "values": {"errors": -1, "of_my_own": 1}}),
        ("sample", {"period_s": 1, "values": {"of_my_own\n": 1}}),
        ("sample", {**SAMPLE, "latencies_ms": [-1]}),
        ("sample", {**SAMPLE, "latencies_ms": [1e16]}),
        ("sample", {**SAMPLE, "period_s": 1e308}),
        ("log", {"level": "ERROR", "logger": "x", "message": "x", "times": 10**30}),
        ("dropped", {"records": 10**400, "first": 1, "last": 1, "total": 1}),
        ("dropped", {"records": 1, "first": 1, "last": 1, "total": 1, "kinds": {"x": 10**400}}),
        ("x" * 300, 1),
        ("x\0", 1),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_record_beyond_all_bounds_is_quarantined(both, kind, body):
    assert len(deliver(both, GOOD, telemetry("evil", [1, kind, NOW - 5 * H, 1, True, body]))) == 1
    assert stored(both) == {"good"}
    assert roll_up(both, NOW) == 2


def test_a_time_whose_day_has_no_end_is_quarantined_and_the_last_before_is_rolled_up(both):
    late = telemetry("evil", *([n, "sample", 2**63 - 2 + n, n, True, SAMPLE] for n in (0, 1)))
    assert len(deliver(both, GOOD, late)) == 2
    assert not deliver(both, telemetry("last", [1, "sample", TIME_MAX_NS, 1, True, SAMPLE]))
    fixed = {"kernel_boot": "k", "offset_ns": 2**63 - 1}
    unsure = [2, "sample", NOW - 5 * H, 2**62, False, SAMPLE]
    assert not deliver(both, telemetry("moved", [1, "clock", NOW, 1, True, fixed], unsure))
    assert roll_up(both, NOW) == 6
    assert both.read(select(func.count()).select_from(dirty))[0][0] == 0


def row(sequence: int, body: bytes = b"1", kind: str = "note") -> Row:
    return Row(sequence, kind, NOW, sequence, True, body)


@pytest.mark.parametrize("poison", ["number", "text", "status"])
def test_what_nobody_foresaw_is_quarantined_alone_and_the_rest_is_stored(both, poison, monkeypatch):
    messages = [Arrived(f"d{n}", "b.k", [row(m) for m in range(1, 11)], "t", b"whole") for n in range(20)]
    statuses = [Status(device=f"d{n}", online=True) for n in range(20)]
    rows = list(messages[7].rows)
    if poison == "number":
        rows[3] = rows[3]._replace(time_ns=2**63)
    elif poison == "text":  # neither database takes half a surrogate pair
        rows[3] = rows[3]._replace(kind="\ud800")
    else:
        statuses[7] = Status(device="d7", online=True, birth=2**63)
    messages[7] = messages[7]._replace(rows=rows)
    refused = 0 if poison == "status" else 1
    inserted = both.insert(Batch(messages, (), statuses), NOW)
    assert inserted == (200 - refused, 0, 1)
    assert both.totals() == (200 - refused, 1, 20 - (poison == "status"))
    (kept,) = both.quarantine()
    assert "the database refuses it" in kept.reason
    assert kept.topic == ("ferryman/v1/d7/status" if poison == "status" else "t")
    if poison == "number":
        assert json.loads(kept.raw)["items"] == [[4, "note", 2**63, 4, True, 1]]
    assert both.insert(Batch(messages, (), statuses), NOW) == (0, 200 - refused, 1)


def test_where_even_quarantine_is_refused_it_is_an_error(both, monkeypatch):
    def refuse(*_: object) -> None:
        raise OverflowError

    monkeypatch.setattr(insert.quarantine, "keep", refuse)
    with pytest.raises(RefusedError):
        both.insert(Batch([Arrived("pi", "b.k", [row(1)], "t", b"")]), NOW)


def test_a_status_of_before_that_is_none_any_more_is_replaced(both):
    deliver(both, status(birth=5))
    both.write(lambda connection: connection.execute(devices.update().values(status='{"type":"status"}')))
    assert both.devices() == []
    deliver(both, status(birth=6))
    assert [one.status.birth for one in both.devices()] == [6]


def test_an_hour_that_cannot_be_rolled_up_waits_and_the_others_go_on(both, monkeypatch, caplog):
    deliver(both, GOOD, telemetry("evil", *([n, "sample", NOW - n * H, n, True, SAMPLE] for n in range(2, 30))))
    made = rollup._hour

    def hour(connection, span):
        if span[0] == "evil" and span[2] == NOW // 10**9 - 5 * HOUR_S:
            raise OverflowError("what nobody foresaw")
        made(connection, span)

    monkeypatch.setattr(rollup, "_hour", hour)
    for _ in range(2):
        roll_up(both, NOW)
    left = both.read(select(dirty.c.device, dirty.c.span_s, dirty.c.start_s))
    assert [tuple(one) for one in left] == [("evil", HOUR_S, NOW // 10**9 - 5 * HOUR_S)]
    assert caplog.text.count("what nobody foresaw") == 1
    monkeypatch.undo()
    roll_up(both, NOW)
    assert both.read(select(func.count()).select_from(dirty))[0][0] == 0


def test_names_and_packages_of_one_device_and_hour_are_few(both):
    values = {f"m{n}": 1.0 for n in range(63)} | {"cpu_percent": 1.0}
    samples = [
        [n + 1, "sample", NOW - 5 * H + n, n, True, {"period_s": 1, "values": values, "package_sha256": str(n)}]
        for n in range(100)
    ]
    assert not deliver(both, telemetry("evil", *samples))
    roll_up(both, NOW)
    found = both.read(select(rollups.c.metric, rollups.c.package, rollups.c.count).where(rollups.c.span_s == HOUR_S))
    assert len({metric for metric, _, _ in found}) == NAMES_MAX - len(METRICS) + 1
    assert len({package for _, package, _ in found}) == PACKAGES_MAX + 1
    assert sum(count for metric, _, count in found if metric == "cpu_percent") == 100
    assert sum(count for metric, package, count in found if (metric, package) == ("cpu_percent", "")) == 84


def test_an_hour_costs_no_more_for_the_boots_that_have_nothing_in_it(both, monkeypatch):
    boots = [Arrived("evil", f"b{n}.k", [row(1)], "t", b"") for n in range(50)]
    both.insert(Batch(boots), NOW)
    both.insert(Batch([Arrived("evil", "b.k", [row(1, encode(Sample(**SAMPLE)), "sample")], "t", b"")]), NOW)  # type: ignore[arg-type]
    asked = []
    gone = rollup.spans._gone
    monkeypatch.setattr(
        rollup.spans, "_gone", lambda connection, source: asked.append(source) or gone(connection, source)
    )
    both.write(lambda connection: rollup.spans.samples(connection, ("evil", HOUR_S, NOW // H * HOUR_S)))
    assert len(asked) == 1


def test_the_same_clock_again_corrects_nothing_and_a_step_does(both, monkeypatch):
    corrected = []
    correct = clocks._correct
    monkeypatch.setattr(
        clocks, "_correct", lambda connection, offsets: corrected.append(offsets) or correct(connection, offsets)
    )

    def fix(sequence: int, offset_ns: int) -> None:
        deliver(
            both, telemetry("pi", [sequence, "clock", 5, sequence, True, {"kernel_boot": "k", "offset_ns": offset_ns}])
        )

    for sequence, offset_ns in enumerate((NOW, NOW, NOW + 999_999, NOW + 10**6, NOW), start=1):
        fix(sequence, offset_ns)
    key = ("pi", "k")
    assert [one for one in corrected if one] == [{key: NOW}, {key: NOW + 10**6}, {key: NOW}]
