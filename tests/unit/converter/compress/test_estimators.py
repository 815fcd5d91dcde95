from __future__ import annotations

import pytest
import torch

from ferryman.converter.compress.binary import binarize, fine_tune
from ferryman.converter.compress.estimators import ESTIMATORS, ReSte, Ste, estimated_sign, make_estimator, sign
from ferryman.runtime.contracts.errors import CallerError
from tests.e2e import digits
from tests.e2e.digits import Batches, accuracy

POINTS = torch.linspace(-2, 2, 801, dtype=torch.float64)


def gradient(estimator, x):
    x = x.clone().requires_grad_()
    estimated_sign(x, estimator).sum().backward()
    return x.grad


def reste_at(o):
    estimator = ReSte()
    estimator.o = o
    return estimator


@pytest.mark.parametrize("name", ESTIMATORS)
def test_forward_is_the_exact_sign(name):
    x = torch.tensor([-2.0, -0.0, 0.0, 1e-30, -1e-30, float("inf"), float("nan")])
    expected = torch.tensor([-1.0, 1.0, 1.0, 1.0, -1.0, 1.0, -1.0])  # NaN is what is not >= 0

    assert torch.equal(estimated_sign(x, make_estimator(name)), expected)
    assert torch.equal(sign(x), expected)


def test_ste_passes_gradients_within_one():
    x = torch.tensor([-1.5, -1.0, -0.3, 0.0, 1.0, 1.01])

    assert gradient(Ste(), x).tolist() == [0, 1, 1, 1, 1, 0]


def test_gradients_are_multiplied_by_what_comes_from_above():
    x = torch.tensor([0.5, -0.5], requires_grad=True)

    (estimated_sign(x, Ste()) * torch.tensor([3.0, -2.0])).sum().backward()

    assert x.grad.tolist() == [3, -2]


@pytest.mark.parametrize("o", [1.0, 1.7, 3.0])
def test_reste_is_the_derivative_of_the_power_function(o):
    def power(x):
        return x.sign() * x.abs() ** (1 / o)

    inside = POINTS[(POINTS.abs() > 0.11) & (POINTS.abs() < 1.49)]
    step = 1e-6
    differences = (power(inside + step) - power(inside - step)) / (2 * step)

    assert torch.allclose(gradient(reste_at(o), inside), differences, rtol=1e-6)
    assert torch.allclose(gradient(reste_at(o), inside), inside.abs() ** ((1 - o) / o) / o)


@pytest.mark.parametrize("o", [1.0, 1.7, 3.0])
def test_reste_takes_the_average_slope_near_zero_and_none_far_out(o):
    near = torch.tensor([-0.099, -1e-9, 0.0, 1e-9, 0.05])
    far = torch.tensor([-1e9, -1.51, 1.51, 1e9])

    assert torch.allclose(gradient(reste_at(o), near), torch.full((5,), 0.1 ** (1 / o) / 0.1))
    assert not gradient(reste_at(o), far).any()
    assert gradient(reste_at(o), torch.tensor([1.5, -1.5])).all()


def test_reste_begins_as_the_identity_and_gets_steeper():
    estimator = ReSte()
    found = []
    for epoch in range(11):
        estimator.schedule(epoch, 10)
        found.append(estimator.o)

    assert found == pytest.approx([1 + 0.2 * epoch for epoch in range(11)])
    estimator.schedule(0, 10)
    assert gradient(estimator, torch.tensor([0.0, 0.7, -1.4])).tolist() == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("arguments", [{"o_end": 0.5}, {"m": 0.0}, {"t": 0.1, "m": 0.1}])
def test_reste_refuses_what_has_no_slope(arguments):
    with pytest.raises(CallerError, match="o_end >= 1 and 0 < m < t"):
        ReSte(**arguments)


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(CallerError, match="no estimator 'approx'; there are: ste, reste"):
        make_estimator("approx")


def test_a_made_estimator_passes_through():
    estimator = ReSte(o_end=2)
    assert make_estimator(estimator) is estimator


@pytest.mark.slow
@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_learns_the_digits(name):
    torch.manual_seed(0)
    model, _ = binarize(digits.Digits(), estimator=name)  # from scratch: no help from trained weights

    tuned = fine_tune(model, Batches(), epochs=10, lr=1e-2)

    assert tuned.losses[-1] < tuned.losses[0] / 3
    assert accuracy(tuned.model) >= 0.9
