"""Attention as plain layers, and back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ferryman.converter.low_rank.attention import close_attention, open_attention
from ferryman.converter.prune.heads import HeadAttention
from tests.unit.converter.low_rank.nets import encoder


class Asks(nn.Module):
    """One attention under two names."""

    def __init__(self, **options):
        super().__init__()
        self.one = nn.MultiheadAttention(32, 2, batch_first=True, **options)
        self.other = self.one

    def forward(self, x):
        y = self.one(x, x, x, need_weights=False)[0]
        return self.other(y, x, x, need_weights=False)[0]


@pytest.fixture(autouse=True)
def _no_grad():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.mark.parametrize("make", [encoder, lambda: Asks().eval()])
def test_opened_and_closed_attention_gives_the_same(make):
    net, x = make(), torch.randn(3, 7, 32)
    wanted = net(x)
    changed = copy.deepcopy(net)
    opened = open_attention(changed)
    assert sum(isinstance(one, HeadAttention) for one in changed.modules()) == len(set(opened.before.values()))
    torch.testing.assert_close(changed(x), wanted, atol=1e-5, rtol=1e-4)
    assert close_attention(changed, opened, set()) == set(opened.before)
    assert not any(isinstance(one, HeadAttention) for one in changed.modules())
    torch.testing.assert_close(changed(x), wanted, atol=1e-6, rtol=1e-5)


def test_attention_of_two_names_stays_one():
    net = Asks()
    opened = open_attention(net)
    assert net.one is net.other
    assert close_attention(net, opened, {"other.q"}) == set()
    close_attention(net, opened, set())
    assert net.one is net.other


def test_attention_stays_open_where_a_layer_beside_it_changed():
    net = encoder()
    opened = open_attention(net)
    assert close_attention(net, opened, {"layers.0.linear1"}) == {"layers.1.self_attn"}
    assert isinstance(net.layers[0].self_attn, HeadAttention)


def test_what_cannot_be_opened_says_why():
    net = nn.ModuleDict({"biased": nn.MultiheadAttention(32, 2, add_bias_kv=True)})
    net["tied"] = nn.MultiheadAttention(32, 2)
    net["head"] = nn.Linear(32, 96)
    net["head"].weight = net["tied"].in_proj_weight
    opened = open_attention(net)
    assert not opened.before
    assert "bias of keys" in opened.whole["biased"]
    assert "stay shared" in opened.whole["tied"]
    assert "the model itself" in open_attention(nn.MultiheadAttention(32, 2)).whole[""]
