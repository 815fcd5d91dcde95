"""Convolutions drawn by hypothesis, with the numbers that go wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from tests.support.quantized_reference import Int8, QuantConv, int8_of

SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3e38], np.float32)
BITS = st.sampled_from([8, 4, 2])


def floats(random: np.random.Generator, shape: tuple[int, ...], *, special: bool) -> np.ndarray:
    made = random.standard_normal(shape).astype(np.float32)
    if special:
        at = random.integers(0, made.size, 3)
        made.reshape(-1)[at] = random.choice(SPECIAL, 3)
    return made


def drawn_weights(random: np.random.Generator, shape: tuple[int, ...], bits: int) -> np.ndarray:
    half = 1 << (bits - 1)
    if random.integers(0, 4) == 0:
        return np.full(shape, random.choice([-half, half - 1]))
    return random.integers(-half, half, shape)


@st.composite
def convolutions(draw):
    """Any convolution of some thousand operations."""
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 16, 40, 70]))
    few = groups > 3
    per_group = draw(st.sampled_from([1] if few else [1, 2, 3, 4, 8, 16, 17, 32, 36, 64]))
    out_per_group = draw(st.sampled_from([1, 1, 2] if few else [1, 2, 5, 15, 16, 17, 32, 40]))
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    least = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    padding = draw(st.tuples(*[st.integers(0, min(3, extent - 1)) for extent in least * 2]))
    height = draw(st.integers(max(1, least[0] - padding[0] - padding[2]), least[0] + 6))
    width = draw(st.integers(max(1, least[1] - padding[1] - padding[3]), least[1] + 30))
    bits = draw(BITS)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (draw(st.integers(1, 2)), groups * per_group, height, width)
    kind = draw(st.sampled_from(["int8", "edges", "floats", "dynamic", "zeros"]))
    if kind == "int8":
        x = random.integers(-128, 128, shape, dtype=np.int8)
    elif kind == "edges":
        x = np.full(shape, random.choice([-128, 127]), np.int8)
    else:
        x = floats(random, shape, special=draw(st.booleans())) if kind != "zeros" else np.zeros(shape, np.float32)
    out = groups * out_per_group
    ends = sorted(random.integers(-128, 128, 2).tolist())
    fixed = kind not in {"dynamic", "zeros"}
    zero = draw(st.sampled_from([0, -128, 127, 3]))
    case = QuantConv(
        x=x,
        weight=drawn_weights(random, (out, per_group, *kernel), bits),
        scale=floats(random, (out,), special=draw(st.booleans())),
        bias=random.standard_normal(out).astype(np.float32) * 20,
        bits=bits,
        stride=draw(st.tuples(st.integers(1, 3), st.integers(1, 6))),
        dilation=dilation,
        padding=padding,
        groups=groups,
        x_scale=draw(st.sampled_from([0.02, 1.0, 0.3])) if fixed else 0.0,
        x_zero=zero if fixed else 0,
        out=draw(st.sampled_from([None, Int8(0.5, 3), Int8(2.0, -128, *ends), Int8(1e-3, 127, *ends)])),
    )
    if draw(st.booleans()):
        add = int8_of(random, case.expected().shape)
        case = replace(case, add=add, add_scale=0.1, add_zero=-7)
    return case
