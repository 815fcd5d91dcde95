from __future__ import annotations

import pytest
import torch

from ferryman.converter.quantize.weights import Grid, round_weights


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
