"""Layers beside their chains."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ferryman.converter.low_rank.layers import find_layers
from ferryman.converter.low_rank.timing import Stopwatch, interpreter_timer
from ferryman.runtime.contracts.errors import CallerError
from tests.unit.converter.low_rank.nets import Twice, layer_of, stand_in


def test_what_was_measured_is_not_measured_again():
    asked = []

    def timer(modules, x):
        asked.append((len(modules), tuple(x.shape)))
        return [float(sum(one.numel() for one in module.parameters())) for module in modules]

    watch = Stopwatch(timer)
    layer, _ = layer_of(nn.Linear(32, 32, bias=False), 3, 32)
    alike, _ = layer_of(nn.Linear(32, 32, bias=False), 3, 32)
    assert watch.compare(layer, [("svd", (8,)), ("svd", (4,))]) == [(1024, 512), (1024, 256)]
    assert watch.compare(alike, [("svd", (4,)), ("svd", (2,))]) == [(1024, 256), (1024, 128)]
    assert asked == [(3, (3, 32)), (2, (3, 32))]


def test_many_are_measured_a_few_at_a_time():
    asked = []
    watch = Stopwatch(lambda modules, _: asked.append(len(modules)) or [1.0] * len(modules))
    layer, _ = layer_of(nn.Linear(64, 64), 3, 64)
    assert len(watch.compare(layer, [("svd", (rank,)) for rank in range(1, 16)])) == 15
    assert asked == [8, 8, 2]


def test_all_calls_of_a_layer_count():
    layer, _ = find_layers(Twice().eval(), (torch.randn(3, 32),), stand_in).layers
    assert Stopwatch(lambda modules, _: [1.0] * len(modules)).compare(layer, [("svd", (8,))]) == [(3, 3)]


def test_layers_of_other_dtypes_are_timed_as_floats():
    kinds = []
    watch = Stopwatch(lambda modules, _: kinds.extend(next(m.parameters()).dtype for m in modules) or [1.0, 1.0])
    module = nn.Linear(32, 32, dtype=torch.bfloat16)
    (layer,) = find_layers(module, (torch.randn(3, 32, dtype=torch.bfloat16),), stand_in).layers
    watch.compare(layer, [("svd", (8,))])
    assert kinds == [torch.float32] * 2
    assert module.weight.dtype == torch.bfloat16


def test_an_interpreter_must_be_known():
    with pytest.raises(CallerError, match=r"interpreter 'abacus' is not known; there are: .*executorch"):
        interpreter_timer("abacus")


@pytest.mark.slow
@pytest.mark.parametrize("interpreter", ["executorch", "ai-edge-litert", "tflite-runtime"])
def test_half_of_the_multiplications_show_on_an_interpreter(interpreter):
    torch.manual_seed(0)
    layer, _ = layer_of(nn.Conv2d(64, 64, 3, 1, 1), 1, 64, 32, 32)
    ((dense, thin), (_, split)) = Stopwatch(interpreter_timer(interpreter)).compare(
        layer, [("svd", (24,)), ("spatial", (48,))]
    )
    assert dense / thin > 1.3
    assert dense / split > 1.2
