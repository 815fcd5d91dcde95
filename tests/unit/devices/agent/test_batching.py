from __future__ import annotations

import json

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from ferryman.devices.agent import batching
from ferryman.devices.agent.outbox import BODY_MAX_BYTES, Entry
from ferryman.runtime.contracts.envelope import KIND_MAX_CHARS, Envelope
from ferryman.runtime.contracts.telemetry import Priority
from tests.support.telemetry import carried, read

FLOORS = dict.fromkeys(Priority, 0)
BOOT = "b" * 17 + "5ed1cf13-3af4-4bfa-98a0-f7498931f709"


def entry(sequence: int, body: bytes = b"{}", **fields) -> Entry:
    told = {"boot": BOOT, "kind": "note", "time_ns": 7, "priority": Priority.NORMAL, "uptime_ns": 3, "sure": True}
    return Entry(sequence=sequence, body=body, **{**told, **fields})


def body(size: int) -> bytes:
    return json.dumps({"text": "x" * size}).encode()


entries = st.builds(
    entry,
    st.just(0),
    st.integers(0, 3000).map(body),
    boot=st.sampled_from(["one.a", "one.b"]),
    kind=st.text(min_size=1, max_size=KIND_MAX_CHARS).filter(
        lambda text: text.encode(errors="ignore").decode() == text
    ),
    time_ns=st.integers(0, (1 << 63) - 1),
    priority=st.sampled_from(Priority),
    uptime_ns=st.none() | st.integers(0, (1 << 63) - 1),
    sure=st.booleans(),
)


@settings(deadline=None)
@given(
    st.lists(entries, max_size=40),
    st.integers(1, 20_000),
    st.fixed_dictionaries({level: st.integers(0, 40) for level in Priority}),
)
def test_no_message_exceeds_its_bounds_and_no_record_is_lost(waiting, max_bytes, floors):
    waiting = [one._replace(sequence=number) for number, one in enumerate(waiting, 1)]
    left, seen = waiting, []
    while left:
        taken = batching.take(left, max_bytes, floors)
        left = left[len(taken) :]
        old = batching.is_old(taken[0], floors)
        payload = batching.pack("d" * 64, taken, historical=old)
        assert len(payload) + 64 + 30 + batching.PACKET_BYTES <= max_bytes or len(taken) == 1
        envelope = read(payload)
        assert carried(envelope) == [one.sequence for one in taken]
        assert len({batching.is_old(one, floors) for one in taken}) == 1
        if isinstance(envelope, Envelope):
            assert envelope.historical == old
            seen += [
                (envelope.boot, i.sequence, i.kind, i.time_ns, bytes(i.body), i.uptime_ns, i.sure)
                for i in envelope.items
            ]
        else:
            seen.append(
                (
                    envelope.boot,
                    envelope.sequence,
                    envelope.kind,
                    envelope.time_ns,
                    bytes(envelope.body),
                    None,
                    taken[0].sure,
                )
            )
    assert seen == [(e.boot, e.sequence, e.kind, e.time_ns, e.body, e.uptime_ns, e.sure) for e in waiting]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 100), max_size=30), min_size=3, max_size=3))
def test_what_waits_of_each_priority_is_merged_by_sequence(levels):
    waiting = [[entry(sequence) for sequence in sorted(level)] for level in levels]
    assert [e.sequence for e in batching.in_order(waiting)] == sorted(s for level in levels for s in level)


def test_the_largest_record_fits_what_broker_and_collector_take():
    largest = entry((1 << 63) - 1, b'"' + b"x" * (BODY_MAX_BYTES - 2) + b'"', kind="\x01" * KIND_MAX_CHARS)
    assert batching.take([largest, largest], batching.BYTES_MAX, dict.fromkeys(Priority, 1 << 63)) == [largest]
    plain = msgspec.json.encode(read(batching.pack("d" * 64, [largest], historical=True)))
    assert len(plain) <= BODY_MAX_BYTES + 4096


def test_a_message_holds_so_many_records_at_most():
    assert len(batching.take([entry(n) for n in range(1, 3000)], 1 << 20, FLOORS)) == batching.RECORDS_MAX


def test_it_is_compressed_where_that_pays():
    assert batching.pack("pi", [entry(1)], historical=False).startswith(b"{")
    alike = [entry(n, body(200)) for n in range(1, 100)]
    packed = batching.pack("pi", alike, historical=False)
    assert packed[0] == 0x78
    assert len(packed) < 2000
