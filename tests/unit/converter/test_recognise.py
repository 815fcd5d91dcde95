from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from ferryman.converter.recognise import Recogniser


def last_arithmetic(function, x, buffers=None):
    """The recogniser of a captured function, its input, and the node that it returns."""

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, value in (buffers or {}).items():
                self.register_buffer(name, value)

        def forward(self, x):
            return function(self, x)

    module = torch.export.export(Module().eval(), (x,), strict=False).module(check_guards=False)
    nodes = list(module.graph.nodes)
    (source,) = [node for node in nodes if node.op == "placeholder"]
    (answer,) = nodes[-1].args[0]
    return Recogniser(module), source, answer


def straight_through(_, x):
    smooth = x.clamp(-1, 1)
    return (torch.sign(x).detach() - smooth.detach()) + smooth


@pytest.mark.parametrize(
    ("function", "at_zero"),
    [
        (lambda _, x: torch.where(x >= 0, 1.0, -1.0), 1),
        (lambda _, x: torch.where(x > 0, 1.0, -1.0), -1),
        (lambda _, x: torch.where(x < 0, -1.0, 1.0), 1),
        (lambda _, x: torch.sign(x), 0),
        (lambda _, x: x.sgn(), 0),
        (lambda _, x: (x >= 0).float() * 2 - 1, 1),
        (lambda _, x: torch.where(x >= 0, torch.ones_like(x), -torch.ones_like(x)), 1),
        (lambda _, x: functional.hardtanh(x).sign(), 0),
        (lambda _, x: torch.where(torch.tanh(3 * x.clamp(-2, 2)) >= 0, 1.0, -1.0), 1),
        (straight_through, 0),
        (lambda _, x: (torch.sign(x) - x).detach() + x, 0),
    ],
)
def test_a_sign_is_known_however_it_is_written(function, at_zero):
    recogniser, source, answer = last_arithmetic(function, torch.randn(2, 3, 4, 4))
    found = recogniser.sign(answer)
    assert (found.of, found.node, found.at_zero) == (source, answer, at_zero)


@pytest.mark.parametrize(
    "function",
    [
        lambda _, x: x,
        lambda _, x: x.clamp(-1, 1),
        lambda _, x: -torch.sign(x),
        lambda _, x: 2 * torch.sign(x),
        lambda _, x: torch.sign(x - 0.5),
        lambda _, x: torch.sign(functional.relu(x)),
        lambda _, x: torch.where(x >= 0, 1.0, 0.0),
        lambda _, x: torch.sign(x) + x.sum(),
        lambda _, x: torch.sign(x).double(),
        lambda _, x: torch.tanh(1e6 * x),
        lambda _, x: torch.sign(x) * torch.where(x.abs() > 1e4, -1.0, 1.0),
        lambda _, x: torch.sign(functional.relu_(x * 1.0)),
        lambda _, x: torch.sign(x + torch.linspace(-1, 1, 150).reshape(-1, 1, 1, 1)[: x.shape[0]]),
    ],
)
def test_what_is_no_sign_of_its_input_is_not_taken_for_one(function):
    recogniser, source, answer = last_arithmetic(function, torch.randn(2, 3, 4, 4))
    found = recogniser.sign(answer)
    assert found is None or found.of is not source


def test_the_sign_of_a_sum_is_that_of_the_sum():
    recogniser, source, answer = last_arithmetic(lambda _, x: torch.sign(x + x.mean()), torch.randn(2, 3, 4, 4))
    assert recogniser.sign(answer).of.target == torch.ops.aten.add.Tensor
    assert recogniser.sign(answer).of is not source


def test_constants_are_computed_and_changed_state_is_none():
    def function(self, x):
        self.count.add_(1)
        return x * (torch.sign(self.weight) * self.weight.abs().mean()) + self.count

    weight = torch.tensor([-2.0, 4.0])
    recogniser, source, _ = last_arithmetic(function, torch.randn(3, 2), {"weight": weight, "count": torch.zeros(1)})
    known = [node for node in source.graph.nodes if node in recogniser.constants]
    values = [recogniser.constants[node].tolist() for node in known]
    assert [-3.0, 3.0] in values
    assert not [node for node in known if "count" in str(node.target)]
    with pytest.raises(KeyError):
        recogniser.constants[source]


def test_the_region_between_two_nodes_is_all_that_lies_between():
    def function(self, x):
        return torch.sign(functional.batch_norm(x, self.mean, self.var) * 2)

    buffers = {"mean": torch.randn(3), "var": torch.rand(3) + 0.5}
    recogniser, source, answer = last_arithmetic(function, torch.randn(2, 3, 4, 4), buffers)
    region = recogniser.region(source, answer)
    assert [node.target.overloadpacket for node in region] == [
        *(torch.ops.aten.batch_norm, torch.ops.aten.mul, torch.ops.aten.sign)
    ]
    x = torch.randn(5, 3, 1, 1)
    expected = torch.sign(functional.batch_norm(x, *buffers.values()))
    torch.testing.assert_close(recogniser.evaluate(source, answer, x), expected, rtol=0, atol=0)
    assert recogniser.region(answer, source) is None
