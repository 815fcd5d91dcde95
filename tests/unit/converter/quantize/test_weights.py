"""Rounding of weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ferryman.converter.quantize.weights import Grid, round_weights


@settings(deadline=None, max_examples=40)
@given(
    bits=st.sampled_from([8, 4, 2]), group=st.sampled_from([0, 32]), asymmetric=st.booleans(), half=st.booleans(),
    inputs=st.integers(1, 80), seed=st.integers(0, 10_000),
)  # fmt: skip
def test_integers_fit_and_nothing_is_off_by_more_than_its_scale_says(bits, group, asymmetric, half, inputs, seed):
    torch.manual_seed(seed)
    weight = torch.randn(5, inputs)
    rounded = round_weights(weight, bits, group=group, asymmetric=asymmetric, half=half)
    top = 2 ** (bits - 1)
    assert rounded.integers.min() >= -top
    assert rounded.integers.max() < top
    assert rounded.group == min(group or inputs, inputs)  # what the operators take
    assert rounded.scale.shape == (5, -(-inputs // (group or inputs)))
    zero = 0 if rounded.zero is None else 1
    assert bool(zero) == asymmetric
    inside = (rounded.integers > -top) & (rounded.integers < top - 1)
    scale = rounded.scale.repeat_interleave(rounded.group, 1)[:, :inputs]
    assert bool(((weight - rounded.values()).abs() <= 0.51 * scale)[inside].all())


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("half", [False, True])
def test_weights_on_a_grid_stay_there(bits, half):
    torch.manual_seed(0)
    top = 2 ** (bits - 1)
    integers = torch.randint(-top, top, (50, 96))
    integers[0] = 0
    integers[1] = integers[1].clamp(-1, 1)
    scale = torch.rand(50, 3) + 0.01
    scale = scale.half().float() if half else scale
    weight = integers * scale.repeat_interleave(32, 1)
    torch.testing.assert_close(round_weights(weight, bits, group=32, half=half).values(), weight, rtol=1e-6, atol=0)


@pytest.mark.parametrize("asymmetric", [False, True])
def test_error_correction_loses_less_of_the_output(asymmetric):
    torch.manual_seed(0)
    mix = torch.randn(64, 64)
    x = torch.randn(500, 64) @ mix
    weight = torch.randn(16, 64)
    plain = round_weights(weight, 4, group=32, asymmetric=asymmetric)
    corrected = round_weights(weight, 4, group=32, asymmetric=asymmetric, hessian=(x.T @ x).double())
    lost = [float((x @ (weight - one.values()).T).norm()) for one in (plain, corrected)]
    assert lost[1] < 0.8 * lost[0]


def test_error_correction_takes_inputs_that_are_always_zero():
    x = torch.randn(100, 8)
    x[:, 3] = 0
    rounded = round_weights(torch.randn(4, 8), 4, hessian=(x.T @ x).double())
    assert bool(rounded.values().isfinite().all())


def on_grid(bits, *, scale=0.0371, out=6, inputs=50):
    torch.manual_seed(bits)
    integers = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (out, inputs))
    return integers * torch.full((out, 1), scale)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("bits", [2, 4])
def test_weights_on_a_grid_stay_whichever_side_is_longer(bits, sign):
    """Folding in a batch norm of negative scale turns the longer side of the integers over."""
    weight = sign * on_grid(bits)
    torch.testing.assert_close(round_weights(weight, bits).values(), weight, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_on_no_grid_keep_the_longer_side_below(bits):
    torch.manual_seed(0)
    weight = torch.randn(16, 64) + 0.5  # lopsided
    assert (round_weights(weight, bits).scale > 0).all()


@pytest.mark.parametrize("group", [0, 32])
def test_scales_that_halves_can_hold_are_found_to_the_bit(group):
    weight = on_grid(4, scale=float(torch.tensor(0.0371).half()))
    rounded = round_weights(weight, 4, group=group, half=True)
    assert torch.equal(rounded.values(), weight)


def test_a_row_of_zeros_stays_zero():
    for half in (False, True):
        assert not round_weights(torch.zeros(2, 40), 2, group=32, half=half).values().any()


def test_a_grid_rounds_as_the_function_does():
    weight = torch.randn(4, 70)
    grid = Grid(bits=4, group=32, asymmetric=True, half=True)
    made = round_weights(weight, 4, group=32, asymmetric=True, half=True)
    assert torch.equal(grid.round(weight).values(), made.values())
    assert (grid.ends, int(made.integers.min()), int(made.integers.max())) == ((-8, 7), -8, 7)
