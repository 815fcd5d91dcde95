"""The sparse operators against numpy, on every instruction set this processor has."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferryman.runtime import kernels
from tests.support.kernels import FIRST, LAST, Refused
from tests.support.quantized import run_conv as run_quantized
from tests.support.quantized import run_linear as run_quantized_linear
from tests.support.quantized_cases import convolutions
from tests.support.quantized_reference import linear_case
from tests.support.sparse import check, conv_of, run, run_conv
from tests.support.sparse_reference import FLT_MAX, INDEX_BITS, SparseConv, sparse_blob

LAYOUTS = st.sampled_from([FIRST, LAST])
FUSED = ("avx512", "avx2", "neon_dot", "neon")
"""Instruction sets that round a product and its sum once."""


@pytest.fixture(autouse=True, scope="module")
def best_again():
    """Uses the best instruction set when these tests are done."""
    before = kernels.isa()
    yield
    kernels.load().ferryman_kernels_use(before.encode())


def everywhere(compute):
    """What each instruction set answers."""
    found = {}
    for name in kernels.isas():
        assert kernels.load().ferryman_kernels_use(name.encode()) == 0
        found[name] = compute()
    return found


@st.composite
def sparse_convolutions(draw):
    """Small whole numbers, of which every sum is exact."""
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 5)) | st.just((1, 1)))
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 16, 40]))
    per_group = draw(st.sampled_from([1, 2] if groups > 3 else [1, 2, 3, 8, 17, 40]))
    out_per_group = draw(st.sampled_from([1, 2] if groups > 3 else [1, 2, 7, 16, 33]))
    plain = kernel == (1, 1) and draw(st.booleans())
    stride = (1, 1) if plain else draw(st.tuples(st.integers(1, 3), st.integers(1, 4)))
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    least = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    padding = draw(st.tuples(*[st.integers(0, min(3, extent - 1)) for extent in least * 2]))
    height = draw(st.integers(max(1, least[0] - padding[0] - padding[2]), least[0] + 9))
    width = draw(st.integers(max(1, least[1] - padding[1] - padding[3]), least[1] + 60))
    if plain and draw(st.booleans()):
        height, width = 16, draw(st.integers(1, 40))  # whole vectors: read where they lie
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (draw(st.integers(1, 2)), groups * per_group, height, width)
    weight = random.integers(-8, 9, (groups * out_per_group, per_group, *kernel))
    weight *= random.random(weight.shape) < draw(st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]))
    ends = draw(st.sampled_from([(-FLT_MAX, FLT_MAX), (0.0, FLT_MAX), (0.0, 6.0), (-FLT_MAX, -3.0), (2.0, 2.0)]))
    case = SparseConv(
        x=random.integers(-9, 10, shape).astype("f4"),
        weight=weight.astype("f4"),
        bias=random.integers(-9, 10, len(weight)).astype("f4"),
        index_bits=draw(st.sampled_from(INDEX_BITS)),
        stride=stride,
        dilation=dilation,
        padding=padding,
        groups=groups,
        low=ends[0],
        high=ends[1],
    )
    if draw(st.booleans()):
        case = replace(case, add=random.integers(-9, 10, case.expected().shape).astype("f4"))
    return case


def test_a_pixel_under_a_kernel_of_several_rows_is_no_window_of_its_own():
    weight = np.array([[[[0.0], [2.0]]]], "f4")
    case = SparseConv(x=np.full((1, 1, 1, 1), -8, "f4"), weight=weight, bias=np.array([-9], "f4"), padding=(1, 0, 0, 0))
    for name, found in everywhere(lambda: run_conv(case)).items():
        np.testing.assert_array_equal(found, np.full((1, 1, 1, 1), -25, "f4"), name)


@settings(max_examples=300, deadline=None)
@given(case=sparse_convolutions(), last_in=LAYOUTS, last_out=LAYOUTS, threads=st.integers(1, 5))
def test_whole_numbers_are_exact(case, last_in, last_out, threads):
    expected = case.expected()
    for name, found in everywhere(lambda: run_conv(case, last_in, last_out, threads)).items():
        np.testing.assert_array_equal(found, expected, name)


SHAPES = [
    ((1, 96, 28, 28), (48, 96, 1, 1), {}),
    ((2, 50, 14, 14), (70, 50, 1, 1), {}),
    ((1, 320, 7, 7), (130, 320, 1, 1), {}),
    ((1, 700, 1, 1), (90, 700, 1, 1), {}),
    ((1, 24, 30, 41), (40, 24, 3, 3), {"padding": (1, 1, 1, 1)}),
    ((1, 24, 30, 41), (40, 24, 3, 3), {"padding": (0, 1, 1, 0), "stride": (2, 2)}),
    ((1, 40, 57, 300), (40, 1, 3, 3), {"padding": (1, 1, 1, 1), "groups": 40}),
    ((1, 40, 56, 56), (40, 1, 3, 3), {"padding": (1, 1, 1, 1), "groups": 40, "stride": (2, 2)}),
    ((1, 64, 40, 40), (16, 64, 3, 3), {"padding": (4, 4, 4, 4), "dilation": (4, 4)}),
]


def floats_of(shape, weight, options, index_bits=1, density=0.2):
    random = np.random.default_rng(5)
    values = random.standard_normal(weight) * (random.random(weight) < density)
    return SparseConv(
        x=random.standard_normal(shape).astype("f4"),
        weight=values.astype("f4"),
        bias=random.standard_normal(weight[0]).astype("f4"),
        index_bits=index_bits,
        **options,
    )


@pytest.mark.parametrize(("shape", "weight", "options"), SHAPES)
def test_floats_are_the_same_wherever_and_however_they_are_computed(shape, weight, options):
    case = floats_of(shape, weight, options)
    expected = case.expected()
    found = everywhere(lambda: run_conv(case))
    for name, one in found.items():
        np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-4, err_msg=name)
    for same in ([name for name in found if name in FUSED], [name for name in found if name not in FUSED]):
        for name in same:
            np.testing.assert_array_equal(found[name], found[same[0]], name)
    for last_in, last_out, threads in ((LAST, LAST, 1), (FIRST, LAST, 3), (LAST, FIRST, 2), (FIRST, FIRST, 7)):
        for name, one in everywhere(lambda how=(last_in, last_out, threads): run_conv(case, *how)).items():
            np.testing.assert_array_equal(one, found[name], name)


@pytest.mark.parametrize("index_bits", INDEX_BITS)
def test_how_positions_are_held_changes_nothing(index_bits):
    one = floats_of((1, 300, 7, 9), (60, 300, 1, 1), {}, density=0.05)
    for name, found in everywhere(lambda: run_conv(replace(one, index_bits=index_bits))).items():
        kernels.load().ferryman_kernels_use(name.encode())
        np.testing.assert_array_equal(found, run_conv(one), name)


def test_products_are_summed_in_order_by_fused_steps():
    """One float32 step after the other, in float64 rounded once: exact of floats with few bits."""
    random = np.random.default_rng(1)
    case = SparseConv(
        x=random.standard_normal((1, 40, 4, 4)).astype("f4"),
        weight=(random.standard_normal((8, 40, 1, 1)) * (random.random((8, 40, 1, 1)) < 0.5)).astype("f4"),
        bias=random.standard_normal(8).astype("f4"),
    )
    y = np.repeat(case.bias[:, None], 16, 1)
    apart = y.copy()
    for k in range(40):
        w, x = case.weight[:, k, 0], case.x[0, k].reshape(1, -1)
        y = (w.astype("f8") * x + y).astype("f4")  # a product of two floats is exact in float64
        apart = w * x + apart
    for name, found in everywhere(lambda: run_conv(case)).items():
        wanted = y if name in FUSED else apart
        np.testing.assert_array_equal(found.reshape(8, 16), wanted, name)


def test_clips_as_torch_does():
    x = np.array([np.nan, np.inf, -np.inf, -0.5, 3.0, 9.0], "f4").reshape(1, 1, 1, 6)
    case = SparseConv(x=x, weight=np.ones((1, 1, 1, 1), "f4"), bias=np.zeros(1, "f4"))
    for low, high, wanted in (
        (0.0, 6.0, [np.nan, 6, 0, 0, 3, 6]),
        (0.0, FLT_MAX, [np.nan, np.inf, 0, 0, 3, 9]),
        (-FLT_MAX, 6.0, [np.nan, 6, -np.inf, -0.5, 3, 6]),
        (-FLT_MAX, FLT_MAX, x.reshape(-1)),
    ):
        clipped = replace(case, low=low, high=high)
        for last in (FIRST, LAST):
            for name, found in everywhere(lambda one=clipped, last=last: run_conv(one, last, last)).items():
                np.testing.assert_array_equal(found.reshape(-1), np.array(wanted, "f4"), name)


@settings(max_examples=150, deadline=None)
@given(
    case=convolutions(),
    density=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    layout=LAYOUTS,
    index_bits=st.sampled_from([1, 4, 8]),
    unpack=st.booleans(),
    threads=st.integers(1, 4),
)
def test_quantized_convolutions_equal_the_dense_ones(case, density, layout, index_bits, unpack, threads):
    if case.groups > 1 and case.weight.shape[1] == 1:
        with pytest.raises(Refused, match="several input channels"):
            run_quantized(case, layout, threads, (index_bits, unpack))
        return
    random = np.random.default_rng(case.weight.size)
    case = replace(case, weight=case.weight * (random.random(case.weight.shape) < density))
    expected = case.expected()
    for name, found in everywhere(lambda: run_quantized(case, layout, threads, (index_bits, unpack))).items():
        np.testing.assert_array_equal(found, expected, name)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("index_bits", [1, 4, 8])
@pytest.mark.parametrize("rows", [1, 9, 70])
def test_quantized_linear_layers_equal_the_dense_ones(bits, index_bits, rows):
    layer = linear_case(150, 83, bits, 32, zero=False)
    random = np.random.default_rng(0)
    layer = replace(layer, stored=np.where(random.random(layer.stored.shape) < 0.2, layer.stored, 1 << (bits - 1)))
    x = random.standard_normal((rows, 150)).astype("f4")
    expected = layer.expected(x)
    for name, found in everywhere(lambda: run_quantized_linear(layer, x, 2, index_bits)).items():
        np.testing.assert_array_equal(found, expected, name)


def test_quantized_linear_layers_with_an_index_have_no_zeros():
    layer = linear_case(64, 16)
    with pytest.raises(Refused, match="must have no zeros"):
        run_quantized_linear(layer, np.zeros((1, 64), "f4"), index_bits=1)


def small(index_bits):
    random = np.random.default_rng(3)
    weight = (random.integers(1, 9, (5, 11, 1, 1)) * (random.random((5, 11, 1, 1)) < 0.5)).astype("f4")
    return SparseConv(x=np.ones((1, 11, 2, 3), "f4"), weight=weight, bias=np.zeros(5, "f4"), index_bits=index_bits)


def refused(case, values, index, match="index"):
    output = np.zeros((1, 5, 2, 3), "f4")
    with pytest.raises(Refused, match=match):
        run(conv_of(case), [case.x, values, index, case.bias, None, output], threads=2)


@pytest.mark.parametrize("index_bits", [1, 4, 8])
def test_an_index_that_does_not_fit_is_refused(index_bits):
    case = small(index_bits)
    values, index = case.constants()
    refused(case, values[:-1], index)
    refused(case, np.append(values, values[:1]), index)
    refused(case, values, index[:-1])
    refused(case, values, np.append(index, np.zeros(1, np.uint8)))
    if index_bits == 1:
        beyond = index.copy()
        beyond[1] |= 0x80  # of 11 weights, the 16th
        refused(case, np.append(values, values[:1]), beyond)
    else:
        far = index.copy()
        far[10:] = 0xFF
        refused(case, values, far)
        moved = index.copy()
        moved[0], moved[2] = moved[0] + 1, moved[2] - 1  # as many values, but of other channels
        moved[10:] = 0xFF
        refused(case, values, moved)


@settings(max_examples=400, deadline=None)
@given(data=st.data(), index_bits=st.sampled_from([1, 4, 8]))
def test_any_bytes_are_computed_or_refused(data, index_bits):
    case = small(index_bits)
    values, index = case.constants()
    index = index.copy()
    for _ in range(data.draw(st.integers(1, 4))):
        index[data.draw(st.integers(0, len(index) - 1))] = data.draw(st.sampled_from([0, 1, 2, 5, 0x80, 0xFF]))
    output = np.full((1, 5, 2, 3), np.nan, "f4")
    try:
        run(conv_of(case), [case.x, values, index, case.bias, None, output])
    except Refused:
        return
    assert output.sum() == 6 * values.sum()  # inputs are ones: wherever they are, values count


@pytest.mark.parametrize("index_bits", [1, 4, 8])
@pytest.mark.parametrize("unpack", [False, True])
def test_a_quantized_index_that_does_not_fit_is_refused(index_bits, unpack, monkeypatch):
    from tests.support import quantized
    from tests.support.quantized_reference import conv_case

    case = conv_case(11, 5, size=3, kernel=1, x_scale=0.1)
    good = sparse_blob(case.weight, 8, index_bits)
    for wrong in (good[:-1], np.append(good, good[:1]), good[:3], np.full_like(good, 0xFF), np.zeros_like(good)):
        monkeypatch.setattr(quantized, "sparse_blob", lambda *_, wrong=wrong: np.ascontiguousarray(wrong))
        with pytest.raises(Refused, match="index"):
            run_quantized(case, sparse=(index_bits, unpack))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"index_bits": 2}, "0, 1, 4 or 8 bits"),
        ({"low": 1.0, "high": 0.0}, "low end"),
        ({"low": float("nan")}, "low end"),
        ({"output_layout": 2}, "layout"),
        ({"channels": 65536, "groups": 1}, "65535"),
        ({"width": 1 << 24, "height": 1 << 20}, "2\\^31"),
        ({"kernel_w": 2, "dilation_w": 1 << 24, "pad_left": 1 << 24}, "padded input"),
    ],
)
def test_numbers_that_no_convolution_has_are_refused(change, match):
    conv = conv_of(small(1))
    for name, value in change.items():
        setattr(conv, name, value)
    with pytest.raises(Refused, match=match):
        check(conv)
