"""Multiply-adds, bytes and loops of models, counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.work import _KINDS, work_of
from ferryman.profiler.operators.kinds import kind_of
from ferryman.runtime.contracts.errors import ModelError
from ferryman.runtime.contracts.work import Work


def test_a_convolution_with_what_runtimes_fold_into_it_is_one_operator():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()).eval()
    (one,) = work_of(net, (torch.randn(1, 3, 16, 16),))
    moved = 4 * (3 * 16 * 16 + 8 * 3 * 9 + 8 * 8 * 8)
    assert one == Work(kind="conv2d", macs=64 * 8 * 27, bytes_moved=moved, channels=8, loops=64 * 9)


def test_a_depthwise_convolution_is_another_kind():
    (one,) = work_of(nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False).eval(), (torch.randn(2, 8, 4, 4),))
    moved = 4 * (2 * 2 * 8 * 16 + 8 * 9)
    assert one == Work(kind="depthwise_conv2d", macs=2 * 8 * 16 * 9, bytes_moved=moved, channels=8, loops=2 * 16)


def test_a_grouped_convolution_is_not_depthwise():
    (one,) = work_of(nn.Conv2d(8, 8, 1, groups=2, bias=False).eval(), (torch.randn(1, 8, 4, 4),))
    assert (one.kind, one.macs) == ("conv2d", 16 * 8 * 4)


def test_a_linear_layer_counts_its_bias():
    (one,) = work_of(nn.Linear(8, 5).eval(), (torch.randn(3, 8),))
    assert one == Work(kind="linear", macs=3 * 40, bytes_moved=4 * (24 + 40 + 5 + 15), channels=5, loops=3)


class Mixed(nn.Module):
    def forward(self, x, y):
        shared = functional.relu(x)  # of an input: nothing to fold it into
        product = torch.matmul(shared, y)
        return (product + product).reshape(-1), functional.scaled_dot_product_attention(x[None], x[None], x[None])


def test_products_sums_and_views():
    found = work_of(Mixed().eval(), (torch.randn(4, 6), torch.randn(6, 5)))
    assert [(one.kind, one.macs) for one in found if one.kind != "unsqueeze"] == [
        ("clamp", 0),
        ("matmul", 4 * 5 * 6),
        ("add", 0),
        ("attention", 2 * 4 * 4 * 6),
    ]


def test_a_relu_whose_input_is_used_elsewhere_is_an_operator():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1)

        def forward(self, x):
            x = self.conv(x)
            return x - functional.relu(x)

    assert [one.kind for one in work_of(Twice().eval(), (torch.randn(1, 1, 2, 2),))] == ["conv2d", "clamp", "sub"]


@pytest.mark.parametrize(
    "target", sorted((one for one in _KINDS if one.overloadpacket.__name__ not in {"numpy_T", "select"}), key=str)
)
def test_words_are_those_of_measured_operators(target):
    assert kind_of(f"aten::{target.overloadpacket.__name__}") == _KINDS[target]


def test_a_model_that_cannot_be_captured_is_an_error():
    with pytest.raises(ModelError):
        work_of(nn.Linear(8, 5).train(), (torch.randn(3, 8),))
