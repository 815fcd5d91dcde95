from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferryman.devices.fleet import collector
from ferryman.devices.fleet.collector import parse_status, parse_telemetry
from ferryman.devices.fleet.store.store import Store, open_store
from ferryman.runtime.contracts.envelope import Receipt
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import decode, encode
from tests.support.measurements import measurement

TOPIC = "ferryman/v1/pi/telemetry"
GOOD: dict[str, Any] = {
    "schema": 1,
    "device": "pi",
    "boot": "b",
    "sequence": 1,
    "time_ns": 1,
    "kind": "note",
    "body": {"a": [1, None, "é"]},
}


class Came:
    """A delivery, without a broker."""

    def __init__(self, topic: str, payload: bytes) -> None:
        self.topic = topic
        self.payload = payload


def raw(**changes: object) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def test_a_good_envelope_is_taken_and_unknown_fields_are_ignored():
    envelope = parse_telemetry(TOPIC, raw(added_by_a_later_version=True))
    assert (envelope.device, envelope.sequence) == ("pi", 1)
    assert json.loads(bytes(envelope.body)) == GOOD["body"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schema": 2}, "schema 2"),
        ({"device": "other"}, "the topic says device 'pi'"),
        ({"sequence": 0}, "not an envelope: Expected `int`"),
        ({"sequence": -1}, "not an envelope: Expected `int`"),
        ({"sequence": 1 << 63}, "not an envelope: Expected `int`"),
        ({"sequence": 1 << 80}, "not an envelope"),
        ({"sequence": 1.5}, "not an envelope"),
        ({"time_ns": -1}, "not an envelope: Expected `int`"),
        ({"boot": ""}, "not an envelope: Expected `str` of length"),
        ({"kind": "k" * 257}, "not an envelope: Expected `str` of length"),
        ({"kind": "measurement"}, "body is no measurement"),
        ({"body": "x" * collector.MESSAGE_MAX_BYTES}, "are taken"),
    ],
)
def test_a_bad_envelope_is_refused_with_its_reason(changes, reason):
    with pytest.raises(ValueError, match=reason):
        parse_telemetry(TOPIC, raw(**changes))


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xff\xfe", b"null", b"[]", b"{}", b"[" * 100_000, raw()[:-1], raw() + b"x", raw().replace(b"null", b"nul"),
     raw().replace(b"null", b'"\xff"')],
)  # fmt: skip
def test_bytes_that_are_no_envelope_are_refused(payload):
    with pytest.raises(ValueError, match="not an envelope"):
        parse_telemetry(TOPIC, payload)


@pytest.mark.parametrize("topic", ["ferryman/v1/pi/other", "x", "ferryman/v1/a b/telemetry", "ferryman/v1//telemetry"])
def test_other_topics_are_refused(topic):
    with pytest.raises(ValueError, match="is not ferryman/v1"):
        parse_telemetry(topic, raw())


def test_a_real_measurement_is_taken():
    body = json.loads(encode(measurement()))
    assert parse_telemetry(TOPIC, raw(kind="measurement", body=body)).kind == "measurement"


def test_a_status_of_another_device_is_refused():
    payload = encode(Status(device="other", online=True))
    with pytest.raises(ValueError, match="the topic says device 'pi'"):
        parse_status("ferryman/v1/pi/status", payload)


def test_receipts_cover_what_is_stored_and_what_is_quarantined_with_a_name():
    came = [Came(TOPIC, raw(sequence=s)) for s in (3, 1, 2, 7)]
    came += [Came(TOPIC, raw(sequence=4, schema=9)), Came(TOPIC, b"garbage"), Came(TOPIC, raw(sequence=1 << 63))]
    came += [Came("ferryman/v1/pi/status", b""), Came("ferryman/v1/pi/status", b"garbage")]
    batch, (message,) = collector._sort(came)
    assert [row.sequence for one in batch.arrived for row in one.rows] == [3, 1, 2, 7]
    assert [bad.raw for bad in batch.bad] == [came[4].payload, b"garbage", came[6].payload, b"garbage"]
    assert message.topic == "ferryman/v1/pi/receipt"
    assert decode(message.payload, Receipt) == Receipt(boot="b", ranges=((1, 4), (7, 7)))


def test_what_is_not_kept_whole_gets_no_receipt():
    batch, receipts = collector._sort([Came(TOPIC, raw(body="x" * collector.MESSAGE_MAX_BYTES))])
    assert len(batch.bad) == 1
    assert receipts == []


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters(exclude_categories=()))),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)
CHANGED = st.dictionaries(st.sampled_from([*GOOD, "extra"]), JSON).map(lambda changes: raw(**changes))
TEXT_CHANGED = st.tuples(CHANGED, st.integers(0, 200), st.binary(max_size=4)).map(
    lambda t: t[0][: t[1]] + t[2] + t[0][t[1] + len(t[2]) :]
)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Iterator[Store]:
    database = open_store(tmp_path_factory.mktemp("store") / "store.db")
    yield database
    database.close()


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(st.binary(max_size=200), CHANGED, TEXT_CHANGED),
    st.one_of(st.just(TOPIC), st.just("ferryman/v1/pi/status"), st.text(max_size=40)),
)
def test_whatever_comes_is_either_stored_or_quarantined_and_never_crashes(store, payload, topic):
    before = store.totals()
    batch, receipts = collector._sort([Came(topic, payload)])
    cleared = topic.endswith("/status") and not payload
    assert len(batch.arrived) + len(batch.bad) + len(batch.statuses) == (0 if cleared else 1)
    inserted = store.insert(batch, 1)
    after = store.totals()
    assert after.records == before.records + inserted.new
    assert after.quarantined <= before.quarantined + len(batch.bad) + inserted.conflicts
    assert store.measurements() == []
    for message in receipts:
        assert decode(message.payload, Receipt).ranges
