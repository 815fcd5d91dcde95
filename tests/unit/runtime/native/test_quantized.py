"""The quantized operators against their definition in numpy, on every instruction set this processor has."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferryman.runtime import kernels
from tests.support.kernels import FIRST, LAST, Refused
from tests.support.quantized import (
    FLOATS,
    INT8,
    Conv,
    ConvCall,
    Embedding,
    EmbeddingCall,
    Linear,
    LinearCall,
    check,
    request,
    run,
    run_conv,
    run_embedding,
    run_linear,
)
from tests.support.quantized_cases import BITS, convolutions, drawn_weights, floats
from tests.support.quantized_reference import QuantConv, QuantEmbedding, QuantLinear


@pytest.fixture(autouse=True, scope="module")
def best_again():
    """Uses the best instruction set when these tests are done."""
    before = kernels.isa()
    yield
    kernels.load().ferryman_kernels_use(before.encode())


def everywhere(compute, case, *inputs, **how) -> None:
    expected = case.expected(*inputs)
    for name in kernels.isas():
        assert kernels.load().ferryman_kernels_use(name.encode()) == 0
        np.testing.assert_array_equal(compute(case, *inputs, **how), expected, name)


@settings(max_examples=250, deadline=None)
@given(case=convolutions(), layout=st.sampled_from([FIRST, LAST]), threads=st.integers(1, 5))
def test_convolutions_equal_the_reference_to_the_bit(case, layout, threads):
    everywhere(run_conv, case, layout=layout, threads=threads)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize(
    ("shape", "weight", "options"),
    [
        ((1, 96, 17, 9), (72, 96, 1, 1), {}),
        ((1, 64, 9, 9), (64, 64, 3, 3), {"padding": (1, 1, 1, 1)}),
        ((1, 130, 5, 200), (130, 1, 3, 3), {"padding": (1, 1, 1, 1), "groups": 130}),
        ((1, 20, 3, 900), (40, 1, 2, 9), {"dilation": (1, 60), "groups": 20}),
        ((1, 512, 6, 6), (16, 512, 5, 5), {}),
    ],
)
def test_larger_convolutions(shape, weight, options, bits):
    random = np.random.default_rng(0)
    case = QuantConv(
        x=random.integers(-128, 128, shape, dtype=np.int8),
        weight=drawn_weights(random, weight, bits),
        scale=floats(random, weight[:1], special=False),
        bias=floats(random, weight[:1], special=False),
        bits=bits,
        x_scale=0.1,
        x_zero=-5,
        **options,
    )
    everywhere(run_conv, case)


def test_the_largest_depth_does_not_overflow():
    depth = 2**31 // (255 * 128)
    for x, zero, weight in ((-128, 127, -128), (127, -128, -128), (127, -128, 127)):
        case = QuantConv(
            x=np.full((1, depth, 1, 1), x, np.int8),
            weight=np.full((17, depth, 1, 1), weight),
            scale=np.ones(17, np.float32),
            bias=np.zeros(17, np.float32),
            x_scale=1.0,
            x_zero=zero,
        )
        everywhere(run_conv, case)


@st.composite
def linears(draw):
    bits = draw(BITS)
    group = draw(st.sampled_from([32, 64, 96, None]))
    channels = draw(st.integers(1, 5)) * (group or 19) + (draw(st.integers(0, 31)) if group else 0)
    group = group or channels
    rows, out = draw(st.just(1) | st.integers(1, 70)), draw(st.sampled_from([1, 15, 16, 17, 48, 80]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    groups = -(-channels // group)
    x = floats(random, (rows, channels), special=draw(st.booleans()))
    x[random.integers(0, rows)] = draw(st.sampled_from([0.0, 1e-40, 1.0]))
    layer = QuantLinear(
        stored=drawn_weights(random, (out, channels), bits) + (1 << (bits - 1)),
        scale=halves(random, (out, groups), draw(st.booleans())),
        bias=floats(random, (out,), special=False),
        bits=bits,
        group=group,
        zero=random.integers(0, 256, (out, groups), dtype=np.uint8) if draw(st.booleans()) else None,
    )
    return layer, x


def halves(random: np.random.Generator, shape: tuple[int, ...], any_bits: bool) -> np.ndarray:
    if any_bits:
        return random.integers(0, 1 << 16, shape, dtype=np.uint16).view(np.float16)
    return random.standard_normal(shape).astype(np.float16)


@settings(max_examples=150, deadline=None)
@given(case=linears(), threads=st.integers(1, 5))
def test_linear_layers_equal_the_reference_to_the_bit(case, threads):
    everywhere(run_linear, *case, threads=threads)


@st.composite
def embeddings(draw):
    bits = draw(BITS)
    group = draw(st.sampled_from([32, 64, None]))
    channels = draw(st.integers(1, 4)) * (group or 7)
    group = group or channels
    rows = draw(st.integers(1, 20))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    groups = channels // group
    ids = random.integers(0, rows, draw(st.integers(1, 9)), dtype=draw(st.sampled_from([np.int32, np.int64])))
    table = QuantEmbedding(
        stored=random.integers(0, 1 << bits, (rows, channels)),
        scale=halves(random, (rows, groups), draw(st.booleans())),
        bits=bits,
        group=group,
        zero=random.integers(0, 256, (rows, groups), dtype=np.uint8) if draw(st.booleans()) else None,
    )
    return table, ids


@settings(max_examples=100, deadline=None)
@given(case=embeddings(), lanes=st.booleans())
def test_embeddings_equal_the_reference_to_the_bit(case, lanes):
    everywhere(run_embedding, *case, lanes=lanes)


@pytest.mark.parametrize("number", [-1, 3, 2**31 - 1, -(2**63), 2**32])
def test_numbers_beyond_the_table_are_refused(number):
    table = QuantEmbedding(np.zeros((3, 8), np.int64), np.ones((3, 1), np.float16), None, 4, 8)
    with pytest.raises(Refused, match="not one of the table's rows"):
        run_embedding(table, np.array([0, number]))


PLAIN_CONV = Conv(1, 8, 8, 32, 16, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 8, FIRST, INT8, INT8, 1, 0, 1, 0, -128, 127, 1, 0)
PLAIN_LINEAR = Linear(1, 64, 16, 4, 32)
PLAIN_EMBEDDING = Embedding(4, 64, 4, 32, 8, 0, 2)
WIDE = ("dilation_h", "dilation_w", "pad_top", "pad_left", "pad_bottom", "pad_right")
NOT_SCALES = [float("nan"), float("inf"), -1.0, -1e-45]
NOT_SIZES = [0, -1, 2**24 + 1, -(2**31)]


@pytest.mark.parametrize(
    ("good", "changes"),
    [
        *((PLAIN_CONV, {name: value}) for name, _ in Conv._fields_[:11] for value in NOT_SIZES),
        *((PLAIN_CONV, {name: value}) for name in ("x_scale", "out_scale", "add_scale") for value in NOT_SCALES),
        *((PLAIN_CONV, {name: 0}) for name in ("x_scale", "out_scale")),
        *(
            (PLAIN_CONV, {name: value})
            for name in ("x_zero", "out_zero", "out_low", "out_high", "add_zero")
            for value in (-129, 128, 2**31 - 1)
        ),
        (PLAIN_CONV, {"out_low": 1, "out_high": 0}),
        *((PLAIN_CONV, {"bits": value}) for value in (0, 1, 3, 16, -8)),
        *((PLAIN_CONV, {name: 2}) for name in ("layout", "input", "output")),
        (PLAIN_CONV, {"groups": 3}),
        (PLAIN_CONV, {"groups": 0}),
        (PLAIN_CONV, {"pad_left": -1}),
        (PLAIN_CONV, {"pad_top": 3}),
        (PLAIN_CONV, {"kernel_h": 11}),
        (PLAIN_CONV, {"channels": 65794 // 9 + 1}),
        (PLAIN_CONV, {"channels": 2**24, "height": 2**24, "width": 2**24}),
        (PLAIN_CONV, {"out_channels": 2**24, "height": 2**12, "width": 2**12}),
        (PLAIN_CONV, {"out_channels": 2**24, "channels": 2**8}),
        *((PLAIN_CONV, dict.fromkeys(WIDE, value)) for value in (600, 2**14)),  # the padded input would be too large
        *((PLAIN_LINEAR, {name: value}) for name in ("rows", "channels", "out_channels") for value in NOT_SIZES),
        *((PLAIN_LINEAR, {"bits": value}) for value in (0, 1, 3, 16, -8)),
        *((PLAIN_LINEAR, {"group": value}) for value in (0, -32, 33, 96, 2**31 - 1)),
        (PLAIN_LINEAR, {"channels": 2**17, "group": 2**17}),
        (PLAIN_LINEAR, {"channels": 2**24, "out_channels": 2**24}),
        (PLAIN_LINEAR, {"rows": 2**24, "out_channels": 2**24}),
        *((PLAIN_EMBEDDING, {name: value}) for name in ("rows", "channels") for value in NOT_SIZES),
        *((PLAIN_EMBEDDING, {"bits": value}) for value in (0, 1, 3, 16, -8)),
        *((PLAIN_EMBEDDING, {"group": value}) for value in (0, -32, 33, 96)),
        *((PLAIN_EMBEDDING, {"id_bytes": value}) for value in (0, 2, 16)),
        *((PLAIN_EMBEDDING, {"count": value}) for value in (0, -1, 2**31 + 1, 2**63 - 1)),
        (PLAIN_EMBEDDING, {"channels": 2**24, "rows": 2**24}),
        (PLAIN_EMBEDDING, {"channels": 2**24, "group": 2**24, "count": 2**20}),
    ],
)
def test_numbers_that_make_no_operator_are_refused(good, changes):
    numbers = type(good).from_buffer_copy(good)
    check(numbers)
    for name, value in changes.items():
        setattr(numbers, name, value)
    with pytest.raises(Refused, match=r"must|fit|large|unknown|would hold"):
        check(numbers)


@pytest.mark.parametrize("changes", [{"x_scale": 0}, {"x_scale": 1}])
def test_floats_may_have_a_scale_or_none(changes):
    numbers = Conv.from_buffer_copy(PLAIN_CONV)
    numbers.input = FLOATS
    numbers.x_scale = changes["x_scale"]
    check(numbers)


def guarded(count: int, dtype: type) -> np.ndarray:
    guard = np.full(64, 0x5A, dtype)
    return np.concatenate([guard, np.ones(count, dtype), guard])


def compute_guarded(numbers, kind, arrays: list[np.ndarray | None]) -> None:
    """Guards around every array must survive."""
    call = request(kind, [None if array is None else array[64:] for array in arrays])
    if getattr(numbers, "index_bits", 0):  # of which there are no bytes
        call.weight_bytes = 0
        with pytest.raises(Refused, match="index"):
            run(numbers, call)
    else:
        run(numbers, call)
    for array in arrays:
        if array is not None:
            assert (array[:64] == 0x5A).all()
            assert (array[-64:] == 0x5A).all()


WHOLE = st.one_of(st.integers(-3, 40), st.integers(-(2**31), 2**31 - 1))
SCALE = st.floats(width=32)


@settings(max_examples=500, deadline=None)
@given(
    changes=st.dictionaries(st.sampled_from([name for name, kind in Conv._fields_ if "scale" not in name]), WHOLE),
    scales=st.dictionaries(st.sampled_from(["x_scale", "out_scale", "add_scale"]), SCALE),
)
def test_any_numbers_are_refused_or_computed_within_their_sizes(changes, scales):
    """What a hostile artifact may hold."""
    conv = Conv.from_buffer_copy(PLAIN_CONV)
    for name, value in (changes | scales).items():
        setattr(conv, name, value)
    try:
        sizes = check(conv)
    except Refused:
        return
    work = sizes.output * conv.kernel_h * conv.kernel_w * (conv.channels // conv.groups)
    if max(sizes.input, sizes.weights, sizes.output) > 1 << 20 or work > 1 << 22:
        return
    types = {FLOATS: np.float32, INT8: np.int8}
    arrays = [
        guarded(sizes.input, types[conv.input]),
        guarded(sizes.weights, np.uint8),
        guarded(sizes.per_channel, np.float32),
        guarded(sizes.per_channel, np.float32),
        guarded(sizes.output, np.int8) if conv.add_scale else None,
        guarded(sizes.output, types[conv.output]),
    ]
    compute_guarded(conv, ConvCall, arrays)


@settings(max_examples=300, deadline=None)
@given(changes=st.dictionaries(st.sampled_from([name for name, _ in Linear._fields_]), WHOLE))
def test_any_linear_layer_is_refused_or_computed_within_its_sizes(changes):
    linear = Linear.from_buffer_copy(PLAIN_LINEAR)
    for name, value in changes.items():
        setattr(linear, name, value)
    try:
        sizes = check(linear)
    except Refused:
        return
    if max(sizes.input, sizes.weights, sizes.output) > 1 << 20 or linear.rows * sizes.weights > 1 << 22:
        return
    scales = guarded(sizes.scales, np.uint16)
    zeros = guarded(sizes.scales, np.uint8)
    per_channel = guarded(linear.out_channels, np.float32)
    arrays = [guarded(sizes.input, np.float32), guarded(sizes.weights, np.uint8), scales, zeros, per_channel]
    compute_guarded(linear, LinearCall, [*arrays, guarded(sizes.output, np.float32)])


@settings(max_examples=300, deadline=None)
@given(changes=st.dictionaries(st.sampled_from([name for name, _ in Embedding._fields_]), WHOLE))
def test_any_table_is_refused_or_read_within_its_sizes(changes):
    table = Embedding.from_buffer_copy(PLAIN_EMBEDDING)
    for name, value in changes.items():
        setattr(table, name, value)
    try:
        sizes = check(table)
    except Refused:
        return
    if max(sizes.weights, sizes.output) > 1 << 20:
        return
    ids = guarded(table.count, np.int64 if table.id_bytes == 8 else np.int32)
    ids[64:-64] = table.rows - 1
    arrays = [ids, guarded(sizes.weights, np.uint8), guarded(sizes.scales, np.uint16)]
    zeros = guarded(sizes.scales, np.uint8)
    compute_guarded(table, EmbeddingCall, [*arrays, zeros, guarded(sizes.output, np.float32)])
