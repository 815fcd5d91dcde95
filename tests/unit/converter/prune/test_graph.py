"""Which units there are in networks of all kinds, and that taking them out is what silencing them is."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.prune.graph import OUTPUT, find_groups, run
from ferryman.converter.prune.heads import open_attention
from ferryman.converter.prune.structured import prune
from ferryman.converter.prune.units import remove, silence
from ferryman.runtime.contracts.errors import CallerError
from tests.unit.converter.prune.nets import DenseNet, Encoder, Grouped, ResNet, Split, SuperResolution, Vit, image
from tests.zoo.models import Decoder, MobileNetV2, StatefulLstm

NETS = {
    "residual": ResNet, "concat": DenseNet, "split": Split, "grouped": Grouped, "super-resolution": SuperResolution,
    "vit": Vit, "encoder": Encoder,
}  # fmt: skip


def made(name):
    torch.manual_seed(1)
    net = NETS[name]().eval()
    open_attention(net)
    return net, image()


def tokens():
    torch.manual_seed(1)
    return Decoder().eval(), (torch.randint(0, 512, (2, 32)),)


def mobile():
    torch.manual_seed(1)
    net = MobileNetV2(10).train()
    with torch.no_grad():
        net(torch.randn(8, 3, 32, 32))
    return net.eval(), (torch.randn(1, 3, 32, 32),)


def of(graph, path, side="out"):
    """The groups that hold one side of a layer."""
    return [group for group in graph.groups for slot in group.slots if (slot.path, slot.side) == (path, side)]


@pytest.mark.parametrize("name", [*NETS, "mobile"])
def test_each_unit_can_go_and_nothing_else_changes(name):
    net, inputs = mobile() if name == "mobile" else made(name)
    groups = find_groups(net, inputs).groups
    assert groups
    for number, group in enumerate(groups):
        removed = {number: frozenset(range(0, group.count, 3))}
        thin, silent = copy.deepcopy(net), copy.deepcopy(net)
        remove(thin, groups, removed)
        silence(silent, groups, removed)
        assert sum(p.numel() for p in thin.parameters()) < sum(p.numel() for p in net.parameters())
        (found,), (wanted,) = run(thin, inputs), run(silent, inputs)
        assert found.shape == wanted.shape
        if not group.mixes:
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_layers_of_a_residual_stream_go_together():
    net, inputs = made("residual")
    graph = find_groups(net, inputs)
    (stream,) = of(graph, "stem.0")
    assert {"stem.0", "stem.1", "blocks.0.conv2", "blocks.0.norm2", "blocks.1.conv1", "blocks.1.down.0"} <= {
        *stream.layers
    }
    (inner,) = of(graph, "blocks.0.conv1")
    assert {*inner.layers} == {"blocks.0.conv1", "blocks.0.norm1", "blocks.0.conv2"}
    assert graph.refused == {"head": OUTPUT}


def test_a_concatenation_is_read_where_its_parts_lie():
    net, inputs = made("concat")
    (second,) = of(find_groups(net, inputs), "layers.0.2")
    rows = {slot.path: slot.rows[0] for slot in second.slots if slot.side == "in" or slot.path.endswith(".0")}
    assert rows == {"layers.1.0": (8,), "layers.1.2": (8,), "layers.2.0": (8,), "layers.2.2": (8,), "head": (8,)}


def test_both_halves_of_a_split_go_together():
    net, inputs = made("split")
    (gate,) = of(find_groups(net, inputs), "stem")
    assert gate.count == 16
    assert next(slot.rows[3] for slot in gate.slots if slot.path == "stem") == (3, 19)


def test_parts_of_a_grouped_convolution_stay_of_one_size():
    net, inputs = made("grouped")
    graph = find_groups(net, inputs)
    (read,), (given,) = of(graph, "reduce"), of(graph, "middle")
    assert (read.count, given.count) == (8, 8)
    assert next(slot.rows[1] for slot in given.slots if slot.path == "middle") == (1, 9, 17, 25)
    (flat,) = of(graph, "expand")
    assert next(slot.rows[2] for slot in flat.slots if slot.path == "head") == tuple(range(18, 27))


def test_a_depthwise_convolution_goes_with_what_is_around_it():
    net, inputs = mobile()
    (hidden,) = of(find_groups(net, inputs), "features.4.body.3")
    assert {*hidden.layers} == {f"features.4.body.{index}" for index in (0, 1, 3, 4, 6)}


def test_whole_heads_go_and_the_numbers_that_count_them_shrink():
    net, inputs = made("vit")
    (heads,) = of(find_groups(net, inputs), "blocks.0.attention.qkv")
    assert (heads.kind, heads.count) == ("heads", 4)
    remove(net, [heads], {0: frozenset({1, 3})})
    attention = net.blocks[0].attention
    assert (attention.num_heads, attention.head_dim, attention.attn_dim) == (2, 8, 16)
    assert (attention.qkv.out_features, attention.proj.in_features) == (48, 16)
    run(net, inputs)


def test_heads_of_pytorchs_own_attention_can_go_once_it_is_opened():
    torch.manual_seed(1)
    dense = Encoder().eval()
    net = copy.deepcopy(dense)
    opened = open_attention(net)
    assert [*opened] == ["encoder.layers.0.self_attn", "encoder.layers.1.self_attn"]
    torch.testing.assert_close(net(*image()), dense(*image()), rtol=1e-5, atol=1e-5)
    kinds = {group.kind for group in find_groups(net, image()).groups}
    assert kinds == {"heads", "channels"}


@pytest.mark.parametrize("batch_first", [True, False])
def test_opened_attention_computes_what_it_did(batch_first):
    torch.manual_seed(1)
    net = nn.Sequential(nn.MultiheadAttention(16, 4, batch_first=batch_first)).eval()
    x, memory = torch.randn(3, 5, 16), torch.randn(3, 7, 16)
    if not batch_first:
        x, memory = x.transpose(0, 1), memory.transpose(0, 1)
    mask, padding = torch.rand(5, 7) > 0.8, torch.rand(3, 7) > 0.9
    dense = net[0]
    wanted = dense(x, memory, memory, attn_mask=mask, key_padding_mask=padding)
    open_attention(net)
    for found, expected in zip(net[0](x, memory, memory, padding, attn_mask=mask), wanted, strict=True):
        torch.testing.assert_close(found, expected)
    (found, none), (expected, _) = (one(x, x, x, need_weights=False) for one in (net[0], dense))
    assert none is None
    torch.testing.assert_close(found, expected)


def test_where_code_divides_the_width_by_heads_both_shrink():
    net, inputs = tokens()
    groups = find_groups(net, inputs).groups
    leader, *followers = [group for group in groups if group.leader is not None or group.step > 1]
    assert (leader.count, leader.step) == (64, 4)
    assert {group.kind for group in followers} == {"head width"}
    assert len(followers) == 3 * 4 * 2
    assert {"tokens", "positions", "norm"} <= {*leader.layers}


def test_less_head_width_is_what_silent_head_width_is():
    """Where nothing else goes, taking numbers of queries and keys that are zero changes nothing: the scale is kept."""
    net, inputs = tokens()
    groups = find_groups(net, inputs).groups
    lead = next(number for number, group in enumerate(groups) if group.step > 1)
    removed = {number: frozenset({14, 15}) for number, group in enumerate(groups) if group.leader == lead}
    removed[lead] = frozenset(range(56, 64))
    silent = copy.deepcopy(net)
    with torch.no_grad():
        for number, units in removed.items():
            for slot in groups[number].slots:
                layer, rows = silent.get_submodule(slot.path), [i for u in units for i in slot.rows[u]]
                if slot.side == "in" or isinstance(layer, nn.Embedding):
                    layer.weight[:, rows] = 0
                else:
                    layer.weight[rows] = 0
                    layer.bias[rows] = 0
    thin = copy.deepcopy(silent)
    remove(thin, groups, removed)
    for part in silent.modules():  # its norms take statistics over what is left, as the thin one's do
        if isinstance(part, nn.LayerNorm):
            part.forward = lambda x, part=part: nn.functional.pad(
                nn.functional.layer_norm(x[..., :56], (56,), part.weight[:56], part.bias[:56], part.eps), (0, 8)
            )
    found, wanted = thin(*inputs) * 56**0.5, silent(*inputs) * 64**0.5
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


class Shared(nn.Module):
    """Two heads of queries share each head of keys and values, which are repeated for them."""

    def __init__(self, turn):
        super().__init__()
        self.heads, self.shared, self.turn = 4, 2, turn
        self.q, self.k, self.v, self.out = nn.Linear(8, 32), nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(32, 8)

    def forward(self, x):
        x = x.squeeze(1)
        batch, length, _ = x.shape
        q = self.q(x).view(batch, length, self.heads, 8).transpose(1, 2)
        if self.turn:  # as rotary embeddings do
            q = torch.cat([-q[..., 4:], q[..., :4]], -1)
        k, v = (
            layer(x).view(batch, length, self.shared, 8).transpose(1, 2)[:, :, None]
            .expand(batch, self.shared, 2, length, 8).reshape(batch, 2 * self.shared, length, 8)
            for layer in (self.k, self.v)
        )  # fmt: skip
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(batch, length, -1))


def test_heads_that_share_keys_go_together():
    torch.manual_seed(1)
    net = Shared(turn=False).eval()
    (heads,) = find_groups(net, image()).groups
    assert (heads.kind, heads.count) == ("heads", 2)
    remove(net, [heads], {0: frozenset({0})})
    assert (net.q.out_features, net.k.out_features, net.out.in_features) == (16, 8, 16)
    assert (net.heads, net.shared) == (2, 1)
    run(net, image())


def test_heads_that_cannot_be_told_stay_and_looking_has_an_end():
    graph = find_groups(Shared(turn=True).eval(), image())
    assert graph.groups == ()
    assert {"q", "out"} <= {*graph.refused}
    assert "stands between a linear layer and the attention" in graph.refused[""]


def test_what_is_read_in_another_shape_stays_and_the_reason_is_said():
    net, inputs = made("super-resolution")
    graph = find_groups(net, inputs)
    assert [group.layers for group in graph.groups] == [("first", "second")]
    assert graph.refused["second"] == "last is read in another shape than it has"
    assert graph.refused["last"] == OUTPUT


def test_a_tied_layer_stays_tied():
    torch.manual_seed(1)

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.norm, self.head = nn.Embedding(20, 16), nn.LayerNorm(16), nn.Linear(16, 20, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids):
            return self.head(self.norm(self.table(ids)))

    net, inputs = Tied().eval(), (torch.randint(0, 20, (2, 5)),)
    graph = find_groups(net, inputs)
    assert len(graph.groups) == 1
    remove(net, graph.groups, {0: frozenset({1, 2})})
    assert net.head.weight is net.table.weight
    assert net.head.weight.shape == (20, 14)
    assert run(net, inputs)[0].shape == (2, 5, 20)


def test_recurrent_layers_stay():
    net = StatefulLstm().eval()
    state = {"h": torch.zeros(1, 1, 32), "c": torch.zeros(1, 1, 32)}
    graph = find_groups(net, (torch.randn(1, 5, 16), state))
    assert graph.groups == ()


def test_a_model_that_fails_is_refused():
    with pytest.raises(CallerError, match="the model fails with the example"):
        find_groups(ResNet().eval(), (torch.randn(1, 7, 8, 8),))


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.head(self.layer(x).detach()).detach() * 2


def test_of_a_model_that_cannot_be_followed_nothing_goes():
    assert find_groups(Detached().eval(), (torch.randn(1, 4),)).groups == ()


def test_halves_that_layers_of_their_own_read_shrink_alike():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three = nn.Conv2d(1, 32, 3), nn.Conv2d(16, 4, 1), nn.Conv2d(16, 4, 1)

        def forward(self, x):
            first, second = self.one(x).chunk(2, 1)
            return self.two(first) + self.three(second)

    done = prune(Halves().eval(), "pruned-60flops", example=(torch.randn(1, 1, 8, 8),))
    widths = {one.path: one.after for one in done.decisions}
    assert widths == {"one": (1, 16), "two": (8, 4), "three": (8, 4)}


class C2f(nn.Module):
    """As in YOLOv8: a half is read by a block with a shortcut, and both once more with all that the blocks give."""

    def __init__(self, split):
        super().__init__()
        self.half, self.split = 16, split
        self.enter, self.leave = nn.Conv2d(1, 32, 1), nn.Conv2d(64, 5, 1)
        self.blocks = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(2))

    def forward(self, x):
        x = self.enter(x)
        parts = list(self.split(self, x))
        for block in self.blocks:
            parts.append(parts[-1] + torch.relu(block(parts[-1])))
        return self.leave(torch.cat(parts, 1))


@pytest.mark.parametrize(
    "split",
    [
        lambda _, x: x.chunk(2, dim=1),
        lambda net, x: x.split((net.half, net.half), 1),
        lambda _, x: torch.chunk(input=x, chunks=2, dim=1),
        lambda net, x: torch.split(tensor=x, split_size_or_sections=net.half, dim=1),
        lambda _, x: x.tensor_split(2, -3),
    ],
)
def test_a_part_of_a_split_may_have_several_readers(split):
    net = C2f(split).eval()
    graph = find_groups(net, (torch.randn(1, 1, 8, 8),))
    (group,) = graph.groups
    assert set(group.layers) == {"enter", "leave", "blocks.0", "blocks.1"}
    done = prune(net, "pruned-60flops", example=(torch.randn(1, 1, 8, 8),))
    assert {one.path: one.after for one in done.decisions} == {
        "enter": (1, 16),
        "leave": (32, 5),
        "blocks.0": (8, 8),
        "blocks.1": (8, 8),
    }
