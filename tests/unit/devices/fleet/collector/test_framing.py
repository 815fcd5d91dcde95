from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.devices.fleet.collector.framing import (
    cut,
    read_length,
    read_publish,
    write_length,
    write_publish,
)

TOPICS = st.text(st.characters(codec="utf-8"), max_size=40)


@given(st.integers(0, 268_435_455))
def test_a_length_is_read_as_it_is_written(size):
    assert read_length(b"?" + write_length(size) + b"?", 1) == (size, 1 + len(write_length(size)))


@pytest.mark.parametrize(
    ("size", "written"), [(0, "00"), (127, "7f"), (128, "8001"), (16_383, "ff7f"), (268_435_455, "ffffff7f")]
)
def test_lengths_of_the_specification(size, written):
    assert write_length(size).hex() == written


def test_a_length_of_five_bytes_is_refused():
    with pytest.raises(ValueError, match="more than four"):
        cut(b"\x30\x80\x80\x80\x80\x01")


@given(st.lists(st.tuples(TOPICS, st.binary(max_size=300), st.integers(0, 65535)), max_size=8), st.data())
@pytest.mark.parametrize("v5", [True, False])
def test_packets_come_out_however_the_stream_is_cut(v5, messages, data):
    stream = b"".join(write_publish(topic, payload, v5=v5, identifier=number) for topic, payload, number in messages)
    rest, found = b"", []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        read, stream = stream[:size], stream[size:]
        packets, rest, missing = cut(rest + read)
        assert missing > 0
        found += [read_publish(first, body, v5=v5) for first, body in packets]
    assert rest == b""
    assert found == [(t.encode(), n.to_bytes(2, "big") if n else b"", p, False) for t, p, n in messages]


def test_what_is_missing_is_told():
    packet = write_publish("a", b"x" * 1000, v5=True)
    assert cut(packet[:100]) == ([], packet[:100], len(packet) - 100)


def test_properties_are_passed_over():
    body = b"\0\1t" + b"\0\7" + b"\x03\x23\0\1" + b"payload"
    assert read_publish(0x32, body, v5=True) == (b"t", b"\0\7", b"payload", False)
    assert read_publish(0x33, body, v5=True)[3]


@given(st.binary(max_size=40), st.sampled_from([0x30, 0x32, 0x3B]), st.booleans())
def test_a_publish_that_lies_is_refused_or_read_within_its_bounds(body, first, v5):
    try:
        topic, identifier, payload, _ = read_publish(first, body, v5=v5)
    except ValueError:
        return
    assert len(topic) + len(identifier) + len(payload) + 2 <= len(body)
