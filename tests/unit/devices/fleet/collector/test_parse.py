from __future__ import annotations

import json
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.devices.fleet.collector import parse
from ferryman.devices.fleet.collector.bodies import BODIES
from ferryman.devices.fleet.collector.parse import parse_telemetry, reason_class
from ferryman.devices.fleet.collector.status import MESSAGE_MAX_BYTES, parse_status
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import encode
from tests.support.measurements import measurement

TOPIC = "ferryman/v1/pi/telemetry"
ONE: dict[str, Any] = {
    "schema": 1,
    "device": "pi",
    "boot": "b",
    "sequence": 1,
    "time_ns": 1,
    "kind": "note",
    "body": {"a": [1, None, "é"]},
}
GOOD_BODIES: dict[str, object] = {
    "measurement": json.loads(encode(measurement())),
    "sample": {"period_s": 10, "values": {"cpu_percent": 3.5, "of_my_own_mb": 1}, "unavailable": {"power_w": "none"}},
    "log": {"level": "ERROR", "logger": "x", "message": "disk full"},
    "clock": {"kernel_boot": "k", "offset_ns": 1_795_492_336_000_000_000},
}


def raw(**changes: object) -> bytes:
    return json.dumps({**ONE, **changes}).encode()


def item(sequence: object = 1, kind: object = "note", body: object = None) -> list[object]:
    return [sequence, kind, 5, 6, False, {"n": sequence} if body is None else body]


def batch(*items: object, **changes: object) -> bytes:
    return json.dumps({"schema": 2, "device": "pi", "boot": "b", "items": items, **changes}).encode()


def reason(payload: bytes, topic: str = TOPIC) -> str:
    found = parse_telemetry(topic, payload)
    assert found.arrived is None
    (bad,) = found.bad
    assert (bad.topic, bad.raw) == (topic, payload)
    return bad.reason


@pytest.mark.parametrize("pack", [bytes, zlib.compress], ids=["plain", "zlib"])
def test_a_batch_is_taken_whole(pack):
    payload = pack(batch(item(3), item(4, "sample", GOOD_BODIES["sample"]), historical=True, of_a_later_version=1))
    found = parse_telemetry(TOPIC, payload)
    assert found.arrived is not None
    assert (found.arrived.device, found.arrived.boot, found.arrived.raw) == ("pi", "b", payload)
    first, second = found.arrived.rows
    assert first == (3, "note", 5, 6, False, b'{"n": 3}')
    assert json.loads(second.body) == GOOD_BODIES["sample"]
    assert (found.device, found.boot, list(found.sequences), list(found.bad)) == ("pi", "b", [3, 4], [])


def test_one_record_of_schema_1_is_taken():
    found = parse_telemetry(TOPIC, raw(added_by_a_later_version=True))
    assert found.arrived is not None
    (row,) = found.arrived.rows
    assert (row.sequence, row.uptime_ns, row.sure) == (1, None, True)
    assert json.loads(row.body) == ONE["body"]
    assert list(found.sequences) == [1]


def test_a_bad_record_costs_its_neighbours_nothing_and_is_kept_as_it_came():
    bad = item(2, "sample", {"period_s": -1, "values": {}})
    found = parse_telemetry(TOPIC, zlib.compress(batch(item(1), bad, item(3), ["x"], item(4, "k" * 257))))
    assert found.arrived is not None
    assert [row.sequence for row in found.arrived.rows] == [1, 3]
    assert list(found.sequences) == [1, 2, 3, 4], "what is quarantined under a name has its receipt too"
    first, second, third = found.bad
    assert "item 1: body is no sample" in first.reason
    assert json.loads(first.raw) == {"schema": 2, "device": "pi", "boot": "b", "items": [bad]}
    assert json.dumps(bad).encode() in first.raw
    assert "item 3: " in second.reason
    assert "item 4: " in third.reason
    assert reason_class(first.reason) == "record"


def test_what_was_quarantined_of_a_batch_is_taken_once_it_is_understood(monkeypatch):
    found = parse_telemetry(TOPIC, batch(item(1), item(2, "log", {"level": "NOTE"})))
    monkeypatch.delitem(parse.check_body.__globals__["_DECODERS"], "log")
    again = parse_telemetry(TOPIC, found.bad[0].raw)
    assert again.arrived is not None
    assert [row.sequence for row in again.arrived.rows] == [2]


@pytest.mark.parametrize("sequence", [0, -1, 1 << 63, 1 << 80, 1.5, "1", None])
def test_a_record_without_a_name_gets_no_receipt(sequence):
    found = parse_telemetry(TOPIC, batch(item(sequence), item(7)))
    assert list(found.sequences) == [7]
    assert len(found.bad) == 1


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (raw(schema=3), "schema 3, this collector knows 1 and 2"),
        (raw(device="other"), "the topic says device 'pi', the envelope 'other'"),
        (batch(item(), device="other"), "the topic says device 'pi', the envelope 'other'"),
        (batch(["x"], device="other"), "the topic says device 'pi', the envelope 'other'"),
        (raw(sequence=0), "not an envelope: .*sequence"),
        (raw(sequence=1 << 80), "not an envelope: .*sequence"),
        (raw(sequence=1.5), "not an envelope: .*sequence"),
        (raw(time_ns=-1), "not an envelope: .*time_ns"),
        (raw(boot=""), "not an envelope: .*boot"),
        (raw(boot="a\0b"), "boot .* NUL"),
        (batch(item(), boot="a\0b"), "boot .* NUL"),
        (raw(kind="k" * 257), "not an envelope: .*kind"),
        (raw(kind="a\0b"), "kind .* NUL"),
        (raw(kind="measurement"), "body is no measurement"),
        (raw(body="x" * MESSAGE_MAX_BYTES), "are taken"),
        (batch(), "0 items"),
        (batch(*[item(n) for n in range(1, parse.ITEMS_MAX + 2)]), "items"),
        (batch(items=None), "not an envelope"),
        (zlib.compress(batch(item()))[:-1], "zlib: cut short"),
        (zlib.compress(batch(item())) + b"x", "zlib: bytes after the end"),
        (b"x\x9cgarbage", "not an envelope: zlib"),
        (b"x", "zlib: cut short"),
        (zlib.compress(zlib.compress(batch(item()))), "not an envelope"),
    ],
)
def test_a_message_that_cannot_be_taken_says_why(payload, said):
    with pytest.raises(ValueError, match=said):
        raise ValueError(reason(payload))


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xff\xfe", b"null", b"[]", b"{}", b"[" * 100_000, raw()[:-1], raw() + b"x", raw().replace(b"null", b"nul"),
     raw().replace(b"null", b'"\xff"'), batch(item())[:-2], b'{"schema":2,"items":' + b"[" * 100_000],
)  # fmt: skip
def test_bytes_that_are_no_envelope_are_refused(payload):
    assert reason(payload).startswith("not an envelope")


def test_text_that_is_no_utf8_costs_its_own_record_only():
    found = parse_telemetry(TOPIC, batch(item(1), item(2, "note", "§")).replace(b'"\\u00a7"', b'"\xff"'))
    assert list(found.sequences) == [1, 2]
    assert len(found.bad) == 1
    assert b'"\xff"' in found.bad[0].raw


def test_a_bomb_is_not_unpacked():
    bomb = zlib.compress(b" " * (32 << 20), 9)
    assert len(bomb) < MESSAGE_MAX_BYTES / 30
    assert "unpacks to more than" in reason(bomb)


@pytest.mark.parametrize("topic", ["ferryman/v1/pi/other", "x", "ferryman/v1/a b/telemetry", "ferryman/v1//telemetry"])
def test_other_topics_are_refused(topic):
    assert "is not ferryman/v1" in reason(raw(), topic)


@pytest.mark.parametrize("kind", GOOD_BODIES)
@pytest.mark.parametrize("wrap", [lambda k, b: raw(kind=k, body=b), lambda k, b: batch(item(1, k, b))], ids=["1", "2"])
def test_bodies_of_known_kinds_are_taken(kind, wrap):
    found = parse_telemetry(TOPIC, wrap(kind, GOOD_BODIES[kind]))
    assert found.arrived is not None
    assert not found.bad


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("wrap", [lambda k, b: raw(kind=k, body=b), lambda k, b: batch(item(1, k, b))], ids=["1", "2"])
def test_bodies_that_are_none_of_their_kind_are_refused(kind, wrap):
    found = parse_telemetry(TOPIC, wrap(kind, ["nothing of it"]))
    assert found.arrived is None
    assert f"body is no {kind}" in found.bad[0].reason
    assert list(found.sequences) == [1]


@pytest.mark.parametrize(
    "change",
    [
        {"period_s": -1},
        {"values": {"No": 1}},
        {"values": {"cpu_percent": "x"}},
        {"values": {f"v{n}": n for n in range(65)}},
        {"unavailable": {"No": "x"}},
        {"latencies_ms": [1.0] * 65},
        {"package_sha256": 1},
    ],
)
def test_the_bounds_of_a_sample_are_held(change):
    body = {"period_s": 10, "values": {"cpu_percent": 1}, **change}
    assert "body is no sample" in parse_telemetry(TOPIC, batch(item(1, "sample", body))).bad[0].reason


def test_the_longest_message_is_kept_whole_or_gets_no_receipt():
    found = parse_telemetry(TOPIC, raw(body="x" * MESSAGE_MAX_BYTES))
    assert len(found.bad) == 1
    assert not found.sequences


def test_a_status_of_another_device_is_refused():
    payload = encode(Status(device="other", online=True))
    with pytest.raises(ValueError, match="the topic says device 'pi'"):
        parse_status("ferryman/v1/pi/status", payload)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters(exclude_categories=()))),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)


@given(st.lists(st.tuples(st.integers(1, 9), st.sampled_from([*BODIES, "note"]), JSON), min_size=1, max_size=6))
def test_every_item_is_either_taken_or_quarantined_and_all_have_a_receipt(items):
    found = parse_telemetry(TOPIC, zlib.compress(batch(*(item(*one) for one in items))))
    taken = 0 if found.arrived is None else len(found.arrived.rows)
    if any("not an envelope" in bad.reason for bad in found.bad):  # NaN is no JSON
        assert (taken, len(found.bad)) == (0, 1)
        return
    assert taken + len(found.bad) == len(items)
    assert list(found.sequences) == [sequence for sequence, _, _ in items]
