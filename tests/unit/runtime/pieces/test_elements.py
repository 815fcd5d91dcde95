"""Weights as symbols and bits."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from ferryman.runtime.pieces.elements import KINDS, decode_elements, encode_elements

BY_NAME = {kind.name: kind for kind in KINDS}
KIND = st.sampled_from(KINDS)


def weights(name, count, seed=0):
    """(old, new): weights as they are before and after some training."""
    rng = np.random.default_rng(seed)
    old = rng.normal(0, 0.05, count)
    new = old + rng.normal(0, 2e-4, count)
    made = []
    for values in (old, new):
        if name.startswith("float"):
            made.append(values.astype(name).tobytes())
            continue
        steps = 7 if name == "nibble" else 127
        rounded = np.clip(np.rint(values / 0.15 * steps), -steps, steps).astype(np.int8)
        if name == "nibble":
            rounded = (rounded[::2] & 15 | (rounded[1::2] & 15) << 4).astype(np.int8)
        made.append(rounded.tobytes())
    return made


@settings(deadline=None)
@given(KIND, st.binary(max_size=300), st.data())
def test_any_bytes_come_back(kind, new, data):
    base = data.draw(st.none() | st.binary(min_size=len(new), max_size=len(new)))
    lead = data.draw(st.integers(0, min(kind.width - 1, len(new))))
    assert decode_elements(encode_elements(kind, new, base, lead), base, len(new)) == new


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("based", [True, False])
def test_many_bytes_come_back(kind, based):
    old, new = weights(kind.name, 150_001 + 150_001 % 2)
    base = old if based else None
    assert decode_elements(encode_elements(kind, new, base), base, len(new)) == new


@pytest.mark.parametrize("values", [[0.0, -0.0], [np.inf, -np.inf], [np.nan, 1.0], [1e-42, -1e-42], [3.4e38, -3.4e38]])
@pytest.mark.parametrize("name", ["float16", "float32"])
def test_floats_of_every_sort_come_back(name, values):
    with np.errstate(over="ignore"):
        new = np.array(values * 50).astype(name).tobytes()
    for base in (new[::-1], bytes(len(new)), b"\xff" * len(new)):
        assert decode_elements(encode_elements(BY_NAME[name], new, base), base, len(new)) == new


@pytest.mark.parametrize(("name", "least"), [("float32", 1.3), ("float16", 2.0), ("int8", 2.5), ("nibble", 1.3)])
def test_weights_that_changed_a_little_need_fewer_bytes_than_by_zstd(name, least):
    old, new = weights(name, 200_000)
    with_base = zstd.compress(new, zstd_dict=zstd.ZstdDict(old, is_raw=True).as_prefix, level=19)
    assert len(encode_elements(BY_NAME[name], new, old)) * least < min(len(zstd.compress(new, 19)), len(with_base))


@pytest.mark.parametrize("name", ["float32", "int8", "nibble"])
def test_weights_from_nothing_need_fewer_bytes_than_by_zstd(name):
    new = weights(name, 200_000)[1]
    assert len(encode_elements(BY_NAME[name], new, None)) < len(zstd.compress(new, 19))


def test_known_bytes():
    old = np.array([1.0, -2.0, 0.5, 0.25], "<f4").tobytes()
    new = np.array([1.0, -2.0, np.nextafter(np.float32(0.5), np.float32(1)), 0.25], "<f4").tobytes()
    stored = encode_elements(BY_NAME["float32"], new, old)
    assert stored[:4] == bytes([3, 0, 125, 4])  # exponents 125 to 128
    assert decode_elements(stored, old, 16) == new


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(0, 200), st.booleans())
def test_anything_else_is_refused(data, size, based):
    base = bytes(size) if based else None
    try:
        made = decode_elements(data, base, size)
    except (ValueError, zstd.ZstdError):
        return
    assert len(made) == size


DAMAGED = {
    (kind, based): encode_elements(kind, weights(kind.name, 2000)[1], weights(kind.name, 2000)[0] if based else None)
    for kind in KINDS
    for based in (True, False)
}


@given(KIND, st.booleans(), st.data())
@settings(deadline=None, max_examples=30)
def test_damage_is_bounded(kind, based, data):
    old, new = weights(kind.name, 2000)
    base, stored = old if based else None, bytearray(DAMAGED[kind, based])
    for _ in range(data.draw(st.integers(1, 4))):
        stored[data.draw(st.integers(0, len(stored) - 1))] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.sampled_from([len(stored), len(stored) - 1, 9]))
    tracemalloc.start()
    try:
        assert len(decode_elements(bytes(stored[:cut]), base, len(new))) == len(new)
    except (ValueError, zstd.ZstdError):
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 4_000_000


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_memory_is_in_proportion_to_the_piece(kind):
    old, new = weights(kind.name, (4 << 20) * 8 // kind.bits)
    stored = encode_elements(kind, new, old)
    tracemalloc.start()
    decode_elements(stored, old, len(new))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * len(new)


def test_a_base_of_another_length_is_refused():
    stored = encode_elements(BY_NAME["int8"], bytes(100), bytes(100))
    with pytest.raises(ValueError, match="a base of 99 bytes"):
        decode_elements(stored, bytes(99), 100)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="not known here"):
        decode_elements(bytes([9, *range(20)]), None, 10)
