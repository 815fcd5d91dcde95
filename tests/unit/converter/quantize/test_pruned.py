"""Quantized layers without their zeros: the same answers in fewer bytes, where that costs little."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ferryman.converter.capture import Captured, capture
from ferryman.converter.quantize import pruned
from ferryman.converter.quantize.lower import lower_quantized
from ferryman.converter.quantize.recipe import parse_recipe
from ferryman.converter.quantize.weights import round_weights
from ferryman.converter.source import make_source
from ferryman.runtime.contracts.errors import CallerError

FORMS = ("int8-sparse", "4bit-sparse", "2bit-sparse", "4bit-gptq-sparse", "int8-dynamic-sparse")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 64, 3, padding=1)
        self.depthwise, self.narrow = nn.Conv2d(64, 64, 3, padding=1, groups=64), nn.Conv2d(64, 32, 1)
        self.head = nn.Linear(32, 64)

    def forward(self, x):
        x = torch.relu(self.wide(torch.relu(self.stem(x))))
        return self.head(self.narrow(torch.relu(self.depthwise(x))).mean((2, 3)))


def captured_net(zeros: float = 0.9) -> tuple[Captured, torch.Tensor]:
    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        for one in (net.wide, net.narrow, net.head):
            one.weight *= torch.rand_like(one.weight) >= zeros
    return capture(make_source(net, (x,))), x


def stored(captured: Captured) -> int:
    return sum(buffer.nbytes for buffer in captured.program.module().buffers())


@pytest.fixture(params=["skipped", "unpacked"])
def way(request, monkeypatch):
    """Layers are measured to be fastest so; linear layers can only be unpacked."""
    monkeypatch.setattr(
        pruned, "_time", lambda calls: [1.0, *([1.1, 0.9] if request.param == "skipped" else [0.9, 1.1])][: len(calls)]
    )
    return request.param


@pytest.mark.parametrize("form", FORMS)
def test_answers_are_those_of_all_weights(form, way):
    captured, x = captured_net()
    sparse, layers = lower_quantized(captured, parse_recipe(form), [(x,)])
    whole, _ = lower_quantized(captured, parse_recipe(form.removesuffix("-sparse")), [(x,)])
    if "gptq" not in form:  # which keeps zeros only when it is told to
        assert torch.equal(sparse.program.module()(x), whole.program.module()(x))
    assert stored(sparse) < stored(whole)
    notes = {one.path: one.note.rpartition(", ")[2] for one in layers}
    said = "zeros skipped" if way == "skipped" else "zeros left out"
    assert (notes["wide"], notes["narrow"], notes["head"]) == (said, said, "zeros left out")
    assert notes["stem"].endswith("out")
    assert "zeros" not in notes["depthwise"]


def test_layers_that_would_be_slow_keep_their_zeros(monkeypatch):
    monkeypatch.setattr(pruned, "_time", lambda calls: [1.0, 2.1, 2.1][: len(calls)])
    captured, x = captured_net()
    sparse, layers = lower_quantized(captured, parse_recipe("4bit-sparse"), [(x,)])
    whole, _ = lower_quantized(captured, parse_recipe("4bit"), [(x,)])
    assert stored(sparse) == stored(whole)
    assert not any("zeros" in one.note for one in layers)


def test_layers_without_zeros_are_not_measured(monkeypatch):
    monkeypatch.setattr(pruned, "_time", lambda _: pytest.fail("nothing to measure"))
    captured, x = captured_net(zeros=0.0)
    lower_quantized(captured, parse_recipe("int8-sparse"), [(x,)])


def test_both_ways_are_measured_with_the_kernels():
    captured, x = captured_net()
    lower_quantized(captured, parse_recipe("int8-sparse"), [(x,)])  # whatever is found: it runs


def test_error_correction_keeps_zeros():
    torch.manual_seed(0)
    weight = torch.randn(8, 64) * (torch.rand(8, 64) > 0.7)
    inputs = torch.randn(200, 4, dtype=torch.float64) @ torch.randn(4, 64, dtype=torch.float64)
    hessian = inputs.T @ inputs
    moved = round_weights(weight, 2, hessian=hessian)
    kept = round_weights(weight, 2, hessian=hessian, keep_zeros=True)
    zeros = weight == 0
    assert moved.integers[zeros].any()
    assert not kept.integers[zeros].any()


def test_zero_points_do_not_go_with_zeros_left_out():
    with pytest.raises(CallerError, match="with zero points a weight of zero is none in the artifact"):
        parse_recipe("4bit-asym-sparse")
