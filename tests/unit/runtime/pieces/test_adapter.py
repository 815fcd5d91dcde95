"""Pieces that merge an adapter into a tensor."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.tensor import Tensor
from ferryman.runtime.pieces.adapter import decode_adapter, encode_adapter
from ferryman.runtime.pieces.codecs import CODECS
from ferryman.runtime.updates.adapters import (
    RANK_MAX,
    Adapter,
    TensorAdapter,
    check,
    factor,
    merge_weight,
    read_adapters,
    sha256_of,
    write_adapters,
)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def lora(shape, rank=4, dtype=np.float32):
    down, up = normal(rank, *shape[1:], seed=1).astype(dtype), normal(shape[0], rank, seed=2).astype(dtype)
    return Adapter(kind="lora", shape=shape, scale=0.5, factors={"down": factor(down), "up": factor(up)})


def hydra(shape, rank=3):
    out = shape[0]
    factors = {
        "down": factor(normal(rank, *shape[1:], seed=1)),
        "up": factor(normal(out, rank, seed=2)),
        "then_down": factor(normal(rank, out, seed=3)),
        "then_up": factor(normal(out, rank, seed=4)),
    }
    return Adapter(kind="hydra", shape=shape, scale=0.5, then_scale=0.25, factors=factors)


def flora(shape, ranks):
    sides = {f"side{at}": factor(normal(d, r, seed=at)) for at, (d, r) in enumerate(zip(shape, ranks, strict=True))}
    return Adapter(kind="flora", shape=shape, scale=0.1, factors={"core": factor(normal(*ranks, seed=9)), **sides})


SHAPES = [(6, 5), (8, 4, 3), (8, 4, 3, 3), (4, 2, 2, 2, 2), (7,)]


def of(kind, shape):
    if kind == "lora":
        return lora(shape, 2)
    if kind == "hydra":
        return hydra(shape, 2)
    return flora(shape, [max(1, size - 1) for size in shape])


def matrix_of(adapter, weight):
    """The same by numpy's own products, in float64."""
    f = {name: one.to_array().astype(np.float64) for name, one in adapter.factors.items()}
    out = weight.shape[0]
    whole = weight.astype(np.float64).reshape(out, -1)
    if adapter.kind == "flora":
        core = f["core"]
        for axis in range(core.ndim):
            core = np.moveaxis(np.tensordot(f[f"side{axis}"], core, (1, axis)), 0, axis)
        return (whole + adapter.scale * core.reshape(out, -1)).reshape(weight.shape)
    made = whole + adapter.scale * f["up"].reshape(out, -1) @ f["down"].reshape(len(f["down"]), -1)
    if adapter.kind == "hydra":
        made = made + adapter.then_scale * f["then_up"] @ f["then_down"] @ whole
    return made.reshape(weight.shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["lora", "hydra", "flora"])
def test_merging_is_what_the_papers_say(kind, shape):
    adapter, weight = of(kind, shape), normal(*shape, seed=7)
    assert np.allclose(merge_weight(weight, adapter), matrix_of(adapter, weight), rtol=1e-6, atol=1e-6)


def test_sums_are_made_in_their_order():
    """Element by element in Python's own float64, which rounds as IEEE 754 says on every machine."""
    shape = (5, 4)
    adapter, weight = lora(shape, 7), normal(*shape)
    up, down = (adapter.factors[name].to_array().astype(float).tolist() for name in ("up", "down"))
    for row in range(5):
        for column in range(4):
            total = float(weight[row, column])
            for rank in range(7):
                total += (adapter.scale * up[row][rank]) * down[rank][column]
            assert merge_weight(weight, adapter)[row, column] == np.float32(total)


def test_it_is_the_same_however_many_rows_go_at_once(monkeypatch):
    shape = (64, 33)
    whole = merge_weight(normal(*shape), hydra(shape))
    monkeypatch.setattr("ferryman.runtime.updates.adapters._AT_ONCE", 100)
    assert np.array_equal(merge_weight(normal(*shape), hydra(shape)), whole)


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 2, 3, 1), (1, 2, 3, 0)])
def test_a_piece_merges_in_the_artifacts_layout(axes):
    shape = (8, 4, 3, 3)
    weight = normal(*shape)
    base = np.ascontiguousarray(weight.transpose(axes)).tobytes()
    made = decode_adapter(encode_adapter(lora(shape), axes), memoryview(base), len(base))
    assert made == np.ascontiguousarray(merge_weight(weight, lora(shape)).transpose(axes)).tobytes()


def test_half_factors_stay_halves():
    assert len(encode_adapter(lora((64, 64), 4, np.float16), (0, 1))) < 64 * 4 * 2 * 2 + 200


def test_it_is_a_codec_of_whole_tensors():
    assert CODECS["adapter"].based
    assert CODECS["adapter"].size_max == 256 << 20


def spoiled(adapter, **changes):
    factors = dict(adapter.factors) | changes.pop("factors", {})
    fields = {"kind": adapter.kind, "shape": adapter.shape, "scale": adapter.scale, "factors": factors}
    return Adapter(**{**fields, **changes})


@pytest.mark.parametrize(
    "adapter",
    [
        spoiled(lora((6, 5)), shape=(6, 6)),
        spoiled(lora((6, 5)), shape=()),
        spoiled(lora((6, 5)), shape=(0, 5)),
        spoiled(lora((6, 5)), shape=(-6, -5)),
        spoiled(lora((6, 5)), shape=(2,) * 6),
        spoiled(lora((6, 5)), scale=math.nan),
        spoiled(lora((6, 5)), kind="hydra"),
        spoiled(lora((6, 5)), factors={"more": factor(normal(3))}),
        spoiled(lora((6, 5)), factors={"up": factor(normal(6, 3))}),
        spoiled(lora((6, 5)), factors={"up": Tensor(dtype="float64", shape=(6, 4), data=bytes(192))}),
        spoiled(lora((6, 5)), factors={"up": Tensor(dtype="float32", shape=(), data=bytes(4))}),
        lora((600, 600), RANK_MAX + 1),
        flora((4, 4), (5, 4)),
        spoiled(flora((4, 4), (2, 2)), factors={"side1": factor(normal(4, 3))}),
        spoiled(flora((4, 4), (2, 2)), factors={"core": factor(normal(2))}),
    ],
)
def test_what_does_not_fit_is_refused(adapter):
    assert list(check(adapter))
    size = 4 * abs(math.prod(adapter.shape))
    with pytest.raises(ValueError):  # noqa: PT011  # each has words of its own
        decode_adapter(encode_adapter(adapter, tuple(range(len(adapter.shape)))), memoryview(bytes(size)), size)


def test_a_factor_that_its_bytes_do_not_fill_is_refused():
    broken = spoiled(lora((6, 5)), factors={"up": Tensor(dtype="float32", shape=(1 << 40, 4), data=b"")})
    with pytest.raises(ValueError, match="bytes"):
        list(check(broken))


@pytest.mark.parametrize("axes", [(0,), (0, 0), (0, 2), (0, 1, 2)])
def test_an_order_that_is_none_is_refused(axes):
    with pytest.raises(ValueError, match="order"):
        decode_adapter(encode_adapter(lora((6, 5)), axes), memoryview(bytes(120)), 120)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_foreign_bytes_are_refused_or_merged(data):
    stored = bytearray(encode_adapter(lora((6, 5)), (0, 1)))
    for _ in range(data.draw(st.integers(1, 4))):
        stored[data.draw(st.integers(0, len(stored) - 1))] = data.draw(st.integers(0, 255))
    try:
        made = decode_adapter(bytes(stored), memoryview(bytes(120)), 120)
    except (ValueError, OverflowError):
        return
    assert len(made) == 120


def test_a_file_comes_back(tmp_path):
    tensors = {"a.weight": TensorAdapter(adapter=lora((6, 5)), base_sha256=sha256_of(normal(6, 5)))}
    write_adapters(tmp_path / "a", tensors)
    assert read_adapters(tmp_path / "a") == tensors


@pytest.mark.parametrize("data", [b"", b"hello", b"\x82\xa6schema\x02\xa7tensors\x80"])
def test_another_file_is_refused(tmp_path, data):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(CallerError, match="save_adapters"):
        read_adapters(tmp_path / "a")


def test_a_file_with_factors_that_do_not_fit_is_refused(tmp_path):
    bad = TensorAdapter(adapter=spoiled(lora((6, 5)), shape=(6, 6)), base_sha256="")
    write_adapters(tmp_path / "a", {"a.weight": bad})
    with pytest.raises(CallerError, match=r"a\.weight"):
        read_adapters(tmp_path / "a")
    with pytest.raises(CallerError, match="cannot read"):
        read_adapters(tmp_path / "none")
