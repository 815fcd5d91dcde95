"""The binary operators against exact arithmetic, on every instruction set this processor has."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferryman.converter.bits import pack_weights, unpack_signs
from ferryman.runtime import kernels
from tests.support.kernels import BITS, FIRST, LAST, REALS, SIGNS, Case, Conv, Refused, call, check, run, signs

ISAS = kernels.isas()
SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45], np.float32)


@st.composite
def cases(draw):
    """Any convolution of some thousand operations."""
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 8]))
    per_group = draw(st.sampled_from([1, 2, 3, 16, 31, 32, 33, 64, 70]))
    out_per_group = draw(st.sampled_from([1, 2, 5, 15, 16, 17, 32, 40]))
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    least = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    padding = draw(st.tuples(*[st.integers(0, min(3, extent - 1)) for extent in least * 2]))
    height = draw(st.integers(max(1, least[0] - padding[0] - padding[2]), least[0] + 6))
    width = draw(st.integers(max(1, least[1] - padding[1] - padding[3]), least[1] + 20))
    batch = draw(st.integers(1, 2))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = random.standard_normal((batch, groups * per_group, height, width)).astype(np.float32)
    at = random.integers(0, x.size, 5)
    x.reshape(-1)[at] = random.choice(SPECIAL, 5)
    out = groups * out_per_group
    return Case(
        x=x,
        weight=random.standard_normal((out, per_group, *kernel)).astype(np.float32),
        scale=random.standard_normal(out).astype(np.float32),
        bias=random.standard_normal(out).astype(np.float32),
        stride=draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        dilation=dilation,
        padding=padding,
        groups=groups,
        pad_value=draw(st.sampled_from([0, 0, 1, -1])),
        threshold=random.integers(-9, 9, out, dtype=np.int32),
    )


@pytest.fixture(params=ISAS)
def isa(request):
    """Uses one instruction set, then the best one again."""
    library = kernels.load()
    before = kernels.isa()
    assert library.ferryman_kernels_use(request.param.encode()) == 0
    yield request.param
    assert library.ferryman_kernels_use(before.encode()) == 0


@settings(max_examples=150, deadline=None)
@given(
    case=cases(), kind=st.sampled_from([SIGNS, BITS]), layout=st.sampled_from([FIRST, LAST]), threads=st.integers(1, 5)
)
def test_signs_equal_the_reference_to_the_bit(case, kind, layout, threads):
    expected = case.expected()
    packed = case.dots() >= case.threshold[:, None, None]
    for name in ISAS:
        kernels.load().ferryman_kernels_use(name.encode())
        np.testing.assert_array_equal(run(case, kind, layout, threads=threads), expected, name)
        words = run(case, kind, layout, bits_out=True, threads=threads)
        assert np.array_equal(unpack_signs(words, packed.shape[1]).transpose(0, 3, 1, 2), packed), name
        tail = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little")[..., packed.shape[1] :]
        assert not tail.any(), f"{name}: bits beyond the channels"


@settings(max_examples=100, deadline=None)
@given(case=cases(), layout=st.sampled_from([FIRST, LAST]), threads=st.integers(1, 5))
def test_real_activations_are_exact_on_integers_and_the_same_everywhere(case, layout, threads):
    """Sums of floats depend on their order, which is one and the same on every instruction set."""
    x = np.nan_to_num(np.clip(np.round(case.x * 9), -99, 99), nan=3.0)
    whole = Case(**{**vars(case), "x": x.astype(np.float32)})
    expected = whole.dots(real=True).astype(np.float32) * case.scale[:, None, None] + case.bias[:, None, None]
    first = None
    for name in ISAS:
        kernels.load().ferryman_kernels_use(name.encode())
        np.testing.assert_array_equal(run(whole, REALS, layout, threads=threads), expected, name)
        found = run(case, REALS, layout, threads=threads)
        first = found if first is None else first
        assert found.tobytes() == first.tobytes() or np.array_equal(found, first, equal_nan=True), name


def test_the_environment_forces_an_instruction_set():
    code = "from ferryman.runtime import kernels; print(kernels.isa())"
    for name in ISAS:
        environment = os.environ | {kernels.ISA: name}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == name


def test_an_instruction_set_that_is_not_here_is_the_callers_fault():
    code = "from ferryman.runtime import kernels; kernels.isa()"
    environment = os.environ | {kernels.ISA: "sve9"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert f"CallerError: FERRYMAN_KERNELS_ISA is 'sve9'; this processor has {', '.join(ISAS)}" in done.stderr


PLAIN = Conv(1, 8, 8, 32, 16, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, SIGNS, 0, FIRST)


@pytest.mark.parametrize(
    "changes",
    [
        *({name: value} for name, _ in Conv._fields_[:11] for value in (0, -1, 2**24 + 1, -(2**31))),
        {"groups": 0},
        {"groups": 3},
        {"groups": 32, "out_channels": 16},
        {"pad_value": 2},
        {"pad_value": -2},
        {"pad_top": -1},
        {"pad_left": 2**31 - 1},
        {"pad_top": 3},
        {"pad_right": 3},
        {"kernel_h": 1},
        {
            "dilation_h": 2**13,
            "pad_top": 2**13,
            "pad_bottom": 2**13,
            "dilation_w": 2**13,
            "pad_left": 2**13,
            "pad_right": 2**13,
            "stride_h": 2**13,
            "stride_w": 2**13,
        },
        {"input": 3},
        {"input": -1},
        {"input": REALS, "bits_out": 1},
        {"bits_out": 2},
        {"layout": 2},
        {"kernel_h": 11},
        {"dilation_w": 5},
        {"channels": 2**24, "height": 2**24, "width": 2**24},
        {"channels": 2**24, "kernel_h": 2, "height": 16},
        {"out_channels": 2**24, "height": 2**12, "width": 2**12},
    ],
)
def test_numbers_that_make_no_convolution_are_refused(changes):
    conv = Conv.from_buffer_copy(PLAIN)
    check(conv)
    for name, value in changes.items():
        setattr(conv, name, value)
    with pytest.raises(Refused, match=r"must|fit|large|unknown|would hold|cannot"):
        check(conv)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.integers(-3, 40), st.integers(-(2**31), 2**31 - 1)), min_size=20, max_size=20))
def test_any_numbers_are_refused_or_computed_within_their_sizes(numbers):
    """What a hostile artifact may hold. Guard words around every buffer must survive."""
    conv = Conv(*numbers)
    try:
        sizes = check(conv)
    except Refused:
        return
    work = sizes.output * conv.kernel_h * conv.kernel_w * (conv.channels // conv.groups)
    if max(sizes.input, sizes.weights, sizes.output) > 1 << 20 or work > 1 << 22:
        return
    guard = np.full(64, 0x5A5A5A5A, np.int32)

    def guarded(count):
        return np.concatenate([guard, np.ones(count, np.int32), guard])

    channels = sizes.per_channel
    arrays = [guarded(n) for n in (sizes.input, sizes.weights, channels, channels, channels)]
    output = guarded(sizes.output)
    call(conv, [array[64:] for array in arrays], output[64:])
    for array in (*arrays, output):
        np.testing.assert_array_equal(array[:64], guard)
        np.testing.assert_array_equal(array[-64:], guard)


def tap_case(channels: int, kernel: int, out: int) -> Case:
    random = np.random.default_rng(0)
    return Case(
        x=random.standard_normal((1, channels, kernel, kernel)).astype(np.float32),
        weight=random.standard_normal((out, channels, kernel, kernel)).astype(np.float32),
        scale=np.ones(out, np.float32),
        bias=np.zeros(out, np.float32),
        padding=(kernel // 2,) * 4,
    )


def test_ones_of_many_taps_are_counted_some_at_a_time(isa):
    case = tap_case(3, 11, 20)
    np.testing.assert_array_equal(run(case, SIGNS), case.expected())


LITTLE_MEMORY = """
import resource
import numpy as np
from tests.support.kernels import FIRST, REALS, SIGNS, Conv, call, check
ones = np.ones
limit = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (1 << 28)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for kernel, input in ((256, SIGNS), (1024, REALS)):
    size, pad = kernel // 2, kernel // 2
    conv = Conv(1, size, size, 1, 1, kernel, kernel, 64, 64, 1, 1, pad, pad, pad, pad, 1, 0, input, 0, FIRST)
    sizes = check(conv)
    arrays = [ones(n, np.int32) for n in (sizes.input, sizes.weights, 1, 1, 1)]
    call(conv, arrays, ones(sizes.output, np.int32))
"""


def test_large_kernels_take_little_memory():
    subprocess.run([sys.executable, "-c", LITTLE_MEMORY], check=True)


def test_a_weight_takes_one_bit():
    for shape, groups in (((256, 256, 3, 3), 1), ((64, 3, 3, 7), 1), ((128, 1, 3, 3), 128)):
        weight = np.ones(shape, np.float32)
        used = pack_weights(weight, groups).nbytes * 8
        assert weight.size <= used <= 1.2 * weight.size


def test_signs_of_zero_and_nan():
    assert signs(np.array([0.0, -0.0, np.nan])).tolist() == [1, 1, -1]


def test_the_library_may_be_loaded_twice(isa):
    assert ctypes.CDLL(kernels.load()._name).ferryman_kernels_version() == kernels.VERSION
    assert kernels.isa() == isa
