"""Entropy coding of symbols and of positions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferryman.runtime.updates.positions import read_bits, read_positions, write_bits, write_positions
from ferryman.runtime.updates.rans import entropy_bits, read_symbols, write_symbols
from ferryman.runtime.updates.varint import Reader, write_varint


def coded(symbols):
    data = write_symbols(symbols)
    reader = Reader(data)
    assert np.array_equal(read_symbols(reader, len(symbols)), symbols)
    reader.end()
    return data


@settings(deadline=None)
@given(st.lists(st.integers(0, 255), max_size=300))
def test_symbols_come_back(symbols):
    coded(np.array(symbols, np.int64))


@pytest.mark.parametrize("count", [1, 1023, 16_383, 16_384, 100_003, 1_500_000])
def test_any_number_of_symbols_comes_back(count):
    coded(np.minimum(np.random.default_rng(count).geometric(0.5, count), 12))


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_symbols_take_little_more_than_their_entropy(share):
    symbols = np.minimum(np.random.default_rng(0).geometric(share, 200_000) - 1, 200)
    data = coded(symbols)
    assert len(data) <= 1.01 * entropy_bits(symbols) / 8 + 500


def test_one_symbol_alone_takes_no_bits():
    assert len(coded(np.full(100_000, 7))) < 500


def test_symbols_beyond_a_byte_are_refused():
    with pytest.raises(ValueError, match="256"):
        write_symbols(np.array([256]))


@settings(deadline=None)
@given(st.sets(st.integers(0, 5000)), st.integers(0, 3))
def test_positions_come_back(places, room):
    positions = np.array(sorted(places), np.int64)
    size = (max(places) if places else 0) + 1 + room
    reader = Reader(write_positions(positions))
    assert np.array_equal(read_positions(reader, len(positions), size), positions)
    reader.end()


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1])
def test_positions_strewn_at_random_take_what_they_are_worth(share):
    size = 2_000_000
    positions = np.flatnonzero(np.random.default_rng(1).random(size) < share)
    worth = -size * (share * np.log2(share) + (1 - share) * np.log2(1 - share)) / 8
    assert len(write_positions(positions)) < 1.03 * worth + 100


def test_all_positions_take_next_to_nothing():
    assert len(write_positions(np.arange(100_000))) < 500


def test_a_position_beyond_the_size_is_refused():
    data = write_positions(np.array([3, 9]))
    with pytest.raises(ValueError, match="beyond 9"):
        read_positions(Reader(data), 2, 9)


@given(st.lists(st.tuples(st.integers(0, 2**40 - 1), st.integers(0, 40)), max_size=50))
def test_bits_come_back(pairs):
    lengths = np.array([length for _, length in pairs], np.int64)
    values = np.array([value & ((1 << length) - 1) for value, length in pairs], np.int64)
    assert np.array_equal(read_bits(Reader(write_bits(values, lengths)), lengths), values)


@given(st.integers(0, 2**63 - 1))
def test_numbers_come_back(number):
    assert Reader(write_varint(number)).varint() == number


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 3000))
def test_foreign_bytes_are_refused_or_read(data, count):
    for read in (lambda: read_symbols(Reader(data), count), lambda: read_positions(Reader(data), count, 4000)):
        try:
            found = read()
        except ValueError:
            continue
        assert len(found) == count


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damage_is_refused_or_read(data):
    good = bytearray(write_positions(np.flatnonzero(np.random.default_rng(2).random(3000) < 0.1)))
    good[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = read_positions(Reader(good), 300, 3000)
    except ValueError:
        return
    assert (np.diff(found) > 0).all()
    assert found[-1] < 3000
