"""Entropy coding: exact, near the bound, and bounded whatever it is fed."""

from __future__ import annotations

import struct
from contextlib import suppress

import numpy as np
import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from ferryman.runtime.pieces.rans import count_symbols, decode_symbols, encode_symbols

FEW = np.zeros(100, np.uint8)


def drawn(count, many, spread, seed=0):
    """Symbols whose spread depends on their context."""
    rng = np.random.default_rng(seed)
    contexts = rng.integers(0, many, count).astype(np.uint8)
    return np.clip(rng.normal(100, 0.2 + spread * contexts, count), 0, 255).astype(np.uint8), contexts


def entropy_bytes(symbols, contexts, many):
    counts = count_symbols(symbols, contexts, many)
    odds = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return float(-(counts * np.log2(odds, where=counts > 0, out=np.zeros(counts.shape))).sum() / 8)


SYMBOLS, CONTEXTS = drawn(3000, 4, 1.0)
STORED = encode_symbols(SYMBOLS, CONTEXTS, 4)


@settings(deadline=None)
@given(st.integers(0, 5000), st.integers(1, 16), st.floats(0, 20), st.integers(0, 2**32))
def test_symbols_come_back(count, many, spread, seed):
    symbols, contexts = drawn(count, many, spread, seed)
    assert (decode_symbols(encode_symbols(symbols, contexts, many), contexts) == symbols).all()


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 3))))
def test_any_symbols_come_back(pairs):
    symbols = np.array([symbol for symbol, _ in pairs], np.uint8)
    contexts = np.array([context for _, context in pairs], np.uint8)
    assert (decode_symbols(encode_symbols(symbols, contexts, 4), contexts) == symbols).all()


@pytest.mark.parametrize(("many", "spread"), [(1, 5.0), (16, 1.0), (16, 0.1)])
def test_the_size_is_near_the_bound(many, spread):
    symbols, contexts = drawn(500_000, many, spread)
    stored = encode_symbols(symbols, contexts, many)
    assert len(stored) <= 1.005 * entropy_bytes(symbols, contexts, many) + 2000


def test_one_symbol_over_and_over_costs_nearly_nothing():
    assert len(encode_symbols(np.full(1_000_000, 7, np.uint8), np.zeros(1_000_000, np.uint8), 1)) < 2200


def test_rare_symbols_are_kept():
    symbols = np.zeros(1_000_000, np.uint8)
    symbols[::99_991] = np.arange(11) + 200
    contexts = np.zeros(len(symbols), np.uint8)
    assert (decode_symbols(encode_symbols(symbols, contexts, 1), contexts) == symbols).all()


def test_known_bytes_mean_the_same_on_every_machine():
    table = np.zeros((1, 256), "<u2")
    table[0, :3] = (2048, 1024, 1024)
    packed = zstd.compress(table.tobytes())
    x = 1 << 16
    for symbol in (2, 0, 1):  # an encoder begins with the last; by hand, as the paper has it
        frequency, start = ((2048, 0), (1024, 2048), (1024, 3072))[symbol]
        x = x // frequency * 4096 + x % frequency + start
    stored = struct.pack("<HHI", 1, 1, len(packed)) + packed + struct.pack("<I", x)
    assert decode_symbols(stored, np.zeros(3, np.uint8)).tolist() == [1, 0, 2]


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_anything_else_is_refused(data):
    with pytest.raises((ValueError, zstd.ZstdError)):
        decode_symbols(data, FEW)


@settings(deadline=None)
@given(st.data())
def test_damage_is_refused_or_gives_as_many_symbols(data):
    stored = bytearray(STORED)
    for _ in range(data.draw(st.integers(1, 3))):
        stored[data.draw(st.integers(0, len(stored) - 1))] ^= data.draw(st.integers(1, 255))
    with suppress(ValueError, zstd.ZstdError):
        assert len(decode_symbols(bytes(stored), CONTEXTS)) == len(SYMBOLS)


@settings(deadline=None)
@given(st.integers(0, 1200))
def test_what_is_cut_off_is_refused(kept):
    with pytest.raises((ValueError, zstd.ZstdError)):
        decode_symbols(STORED[: min(kept, len(STORED) - 1)], CONTEXTS)


def test_few_lanes_for_many_symbols_are_refused_at_once():
    stored = encode_symbols(FEW, FEW, 1)
    with pytest.raises(ValueError, match="cannot be"):
        decode_symbols(stored, np.zeros(8 << 20, np.uint8))


def test_odds_that_unpack_to_more_are_refused():
    bomb = zstd.compress(bytes(50_000_000))
    with pytest.raises((ValueError, zstd.ZstdError)):
        decode_symbols(struct.pack("<HHI", 1, 1, len(bomb)) + bomb + bytes(4), FEW)


def test_a_context_without_odds_is_refused():
    stored = encode_symbols(FEW, FEW, 1)
    with pytest.raises(ValueError, match="without odds"):
        decode_symbols(stored, FEW + np.uint8(1))
