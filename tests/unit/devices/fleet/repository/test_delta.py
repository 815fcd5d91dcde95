"""Deltas: exact, bounded, and no larger than what changed."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferryman.devices.fleet.repository.delta import EncodedPiece, encode_delta
from ferryman.runtime.contracts.errors import CallerError, PackageError
from ferryman.runtime.pieces.codecs import compress, make
from ferryman.runtime.pieces.index import PIECE_MAX_BYTES, Index, read_index, write_index


def noise(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8).tobytes()


def rebuilt(old, pieces):
    """What a device makes of them, through a written index."""
    pack = b"".join(one.stored for one in pieces)
    at, listed = 0, []
    for one in pieces:
        listed.append(one.piece(0, at))
        at += len(one.stored)
    data, plain = write_index(Index(packs=("0" * 64,), pieces=tuple(listed)))
    index = read_index(data, plain, sum(one.size for one in pieces), len(old))
    made = b""
    for piece in index.pieces:
        stored = pack[piece.offset : piece.offset + piece.length]
        made += make(piece, stored, memoryview(old)[piece.base_offset : piece.base_offset + piece.base_size])
    return made


def wire(pieces):
    return sum(len(one.stored) for one in pieces)


def test_equal_payloads_are_one_copy():
    old = noise(300_000)
    (piece,) = encode_delta(old, old)
    assert (piece.codec, piece.size, piece.stored) == ("copy", len(old), b"")
    assert piece.sha256 == hashlib.sha256(old).digest()


def test_an_empty_payload_has_no_pieces():
    assert encode_delta(b"abc", b"") == []


def test_what_moved_is_found():
    a, b, c = noise(100_000, 1), noise(200_000, 2), noise(150_000, 3)
    old, new = a + b + c, noise(777, 4) + c + a + noise(13, 5) + b
    pieces = encode_delta(old, new)
    assert rebuilt(old, pieces) == new
    assert wire(pieces) < 1000
    assert len(pieces) == 1


def test_a_changed_layer_costs_no_more_than_itself():
    old = noise(600_000)
    layer = noise(100_000, 1)
    new = old[:200_000] + layer + old[300_000:]
    pieces = encode_delta(old, new)
    assert rebuilt(old, pieces) == new
    assert wire(pieces) <= len(layer) + 100


def test_without_a_base_everything_is_made_from_nothing():
    new = noise(100_000) + bytes(100_000)
    pieces = encode_delta(b"", new)
    assert rebuilt(b"", pieces) == new
    assert not any(one.base_size for one in pieces)
    assert wire(pieces) < 101_000


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_edit_is_exact(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    old = rng.integers(
        0, data.draw(st.sampled_from([2, 5, 256])), data.draw(st.integers(0, 40_000)), np.uint8
    ).tobytes()
    new = old
    for _ in range(data.draw(st.integers(0, 4))):
        at, many = sorted(int(value) for value in rng.integers(0, len(new) + 1, 2))
        other = int(rng.integers(0, len(new) + 1))
        new = data.draw(
            st.sampled_from([new[:at] + noise(many - at, at) + new[many:], new[:at] + new[many:], new[other:] + new])
        )[:100_000]
    assert rebuilt(old, encode_delta(old, new)) == new


def test_hints_are_placed_as_they_are():
    old, new = noise(50_000), noise(50_000, 1)
    hint = EncodedPiece(10_000, 20_000, "zstd", compress(new[10_000:30_000], level=1))
    pieces = encode_delta(old, new, [hint])
    assert rebuilt(old, pieces) == new
    (placed,) = [one for one in pieces if one.offset == 10_000]
    assert placed.stored == hint.stored


def test_hints_that_overlap_are_refused():
    hint = EncodedPiece(0, 100, "raw", bytes(100))
    with pytest.raises(CallerError, match="lies over another"):
        encode_delta(b"", bytes(150), [hint, EncodedPiece(50, 100, "raw", bytes(100))])


def test_a_hint_of_an_unknown_codec_is_refused():
    with pytest.raises(CallerError, match="not known"):
        encode_delta(b"", bytes(150), [EncodedPiece(0, 100, "magic", bytes(100))])


def test_a_hint_that_makes_something_else_is_refused():
    with pytest.raises(PackageError, match="hash"):
        encode_delta(b"", bytes(150), [EncodedPiece(0, 100, "raw", b"x" * 100)])


def weights(seed, sizes=(30_000, 15_000, 45_000)):
    rng = np.random.default_rng(seed)
    return [rng.normal(0, 0.05, size).astype(np.float32) for size in sizes]


def tuned(layers):
    rng = np.random.default_rng(9)
    return [layer + rng.normal(0, 1e-4, layer.shape).astype(np.float32) for layer in layers]


def joined(layers):
    return b"".join(layer.tobytes() for layer in layers)


def test_weights_that_all_changed_a_little_are_coded_as_differences():
    layers = weights(0)
    old, new = joined(layers), joined(tuned(layers))
    pieces = encode_delta(old, new)
    assert rebuilt(old, pieces) == new
    assert {one.codec for one in pieces} == {"residual"}
    assert wire(pieces) < 0.65 * len(compress(new, old))


def test_weights_that_moved_and_changed_are_found():
    layers = weights(0)
    old, new = joined(layers), noise(1004, 3) + joined(tuned(layers)[::-1])
    pieces = encode_delta(old, new)
    assert rebuilt(old, pieces) == new
    assert wire(pieces) < 0.7 * len(compress(new, old))


def test_layers_that_changed_differently_are_cut_apart():
    layers = weights(0)
    changed = tuned(layers)
    old = joined(layers) + noise(50_000, 5)
    new = joined([layers[0], changed[1], weights(1)[2]]) + noise(50_000, 5)
    pieces = encode_delta(old, new)
    assert rebuilt(old, pieces) == new
    spans = {(one.codec, one.offset // 1000) for one in pieces}
    assert ("copy", 0) in spans
    assert ("residual", 120) in spans
    assert any(codec == "entropy" for codec, _ in spans)


def test_scattered_edits_are_few_pieces():
    old = noise(1_000_000)
    new = bytearray(old)
    for at in range(5000, 1_000_000, 20_000):
        new[at : at + 7] = b"changed"
    del new[400_000:400_100]
    new[700_000:700_000] = b"inserted"
    pieces = encode_delta(old, bytes(new))
    assert rebuilt(old, pieces) == bytes(new)
    assert len(pieces) <= 2
    assert wire(pieces) < 50 * 7 + 400


def test_pieces_and_their_bases_stay_within_what_a_device_holds():
    size = PIECE_MAX_BYTES + 1
    old = np.zeros(size, np.uint8)
    new = old.copy()
    new[::977] = 1
    pieces = encode_delta(old.tobytes(), new.tobytes())
    assert rebuilt(old.tobytes(), pieces) == new.tobytes()
    assert max(one.size for one in pieces) <= PIECE_MAX_BYTES


def test_the_same_payloads_give_the_same_pieces():
    layers = weights(0, (20_000, 5000))
    old, new = joined(layers), joined(tuned(layers))
    assert encode_delta(old, new) == encode_delta(old, new)
