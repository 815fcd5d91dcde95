"""Pieces that change few weights of a span."""

import hashlib
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferryman.runtime.contracts.errors import PackageError
from ferryman.runtime.pieces.codecs import CODECS, make
from ferryman.runtime.pieces.index import Piece
from ferryman.runtime.pieces.sparse import Changed, add, decode_sparse, encode_sparse


def few(size, codes=(0.5, -0.25, 1e-3), seed=0, share=0.05):
    random = np.random.default_rng(seed)
    return np.where(random.random(size) < share, random.choice(np.float32(codes), size), 0).astype(np.float32)


def floats(size, seed=9):
    return np.random.default_rng(seed).standard_normal(size).astype("<f4").tobytes()


def test_a_span_gets_what_was_added():
    base = floats(5000)
    added = few(5000)
    stored = encode_sparse([Changed(0, added)])
    made = decode_sparse(stored, memoryview(base), len(base))
    assert made == (np.frombuffer(base, np.float32) + added).tobytes()
    assert len(stored) < 5000 * 0.05 * 1.2


def test_a_span_of_several_tensors_keeps_what_lies_between():
    base = bytes(range(64)) + floats(100) + b"between them" + floats(50) + b"end"
    changes = [Changed(64, few(100, (1.0,), share=0.3)), Changed(64 + 400 + 12, few(50, (2.0, 3.0), share=0.3))]
    made = decode_sparse(encode_sparse(changes), memoryview(base), len(base))
    assert made == add(base, changes)
    assert made[:64] == base[:64]
    assert made[464:476] == b"between them"
    assert made[-3:] == b"end"
    assert made != base


def test_what_is_not_added_keeps_its_bits():
    """Also where adding zero would change them: a negative zero, and a NaN's payload."""
    words = np.array([0x80000000, 0x7FC01234, 0x3F800000], np.uint32)
    made = np.frombuffer(add(words.tobytes(), [Changed(0, np.float32([0, 0, 1]))]), np.uint32)
    assert list(made[:2]) == [0x80000000, 0x7FC01234]
    assert made[2:].view(np.float32) == 2


def test_numbers_that_differ_each_go_as_they_are():
    added = np.where(np.random.default_rng(1).random(3000) < 0.2, np.arange(3000) * 1e-3, 0).astype(np.float32)
    base = floats(3000)
    stored = encode_sparse([Changed(0, added)])
    assert decode_sparse(stored, memoryview(base), len(base)) == add(base, [Changed(0, added)])
    assert len(stored) < 600 * 5.5


def test_a_span_at_any_address_works():
    whole = b"x" + floats(10)
    added = few(10, share=0.9)
    assert decode_sparse(encode_sparse([Changed(0, added)]), memoryview(whole)[1:], 40) == add(
        whole[1:], [Changed(0, added)]
    )


def test_overflow_is_infinity_and_no_warning():
    base = np.float32([3e38]).tobytes()
    assert np.isinf(np.frombuffer(add(base, [Changed(0, np.float32([3e38]))]), np.float32))


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 60), st.integers(0, 300)), min_size=1, max_size=6))
def test_spans_come_back(parts):
    changes, at = [], 0
    for number, (gap, size, codes) in enumerate(parts):
        added = few(size, np.arange(1, codes + 2), number, 0.5)
        changes.append(Changed(4 * (at + gap), added))
        at += gap + size
    base = floats(at) + b"ab"
    assert decode_sparse(encode_sparse(changes), memoryview(base), len(base)) == add(base, changes)


def test_it_is_a_codec_of_pieces():
    base = floats(200)
    added = few(200, share=0.3)
    made = add(base, [Changed(0, added)])
    stored = encode_sparse([Changed(0, added)])
    piece = Piece(
        size=800, sha256=hashlib.sha256(made).digest(), codec="sparse", pack=0, length=len(stored), base_size=800
    )
    assert make(piece, stored, memoryview(base)) == made
    with pytest.raises(PackageError, match="hash"):
        make(piece, stored, memoryview(bytes(800)))
    assert CODECS["sparse"].based


@pytest.mark.parametrize("size", [0, 796, 804])
def test_a_base_of_another_size_is_refused(size):
    stored = encode_sparse([Changed(0, few(200))])
    with pytest.raises(ValueError, match="of as many"):
        decode_sparse(stored, memoryview(bytes(size)), 800)


def test_a_tensor_beyond_the_span_is_refused():
    with pytest.raises(ValueError, match="beyond its span"):
        decode_sparse(encode_sparse([Changed(0, few(200))]), memoryview(bytes(400)), 400)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_foreign_bytes_are_refused_or_read_in_time(data):
    stored = bytearray(encode_sparse([Changed(0, few(300)), Changed(1600, few(200, (7.0,)))]))
    if data.draw(st.booleans()):
        stored = bytearray(data.draw(st.binary(max_size=100)))
    elif stored:
        for _ in range(data.draw(st.integers(1, 4))):
            stored[data.draw(st.integers(0, len(stored) - 1))] = data.draw(st.integers(0, 255))
    start = time.process_time()
    try:
        made = decode_sparse(bytes(stored), memoryview(bytes(2400)), 2400)
    except (ValueError, IndexError, OverflowError):
        made = None
    assert time.process_time() - start < 5
    assert made is None or len(made) == 2400
