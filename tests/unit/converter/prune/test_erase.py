"""Branches go as a whole, and their operators with them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ferryman.converter.prune.budget import count
from ferryman.converter.prune.erase import Nothing, erase, find_branches
from ferryman.converter.prune.graph import find_groups
from ferryman.converter.prune.heads import open_attention
from ferryman.converter.prune.structured import prune
from ferryman.converter.quiet import quiet
from tests.unit.converter.prune.nets import Encoder, ResNet, Vit, image
from tests.zoo.models import MobileNetV2


def operators(model, inputs):
    """Layers and additions of the exported program, without what nothing uses."""
    program = torch.export.export(model.eval(), inputs, strict=False)
    graph = program.module().graph
    graph.eliminate_dead_code()
    names = ("conv", "linear", "attention", "add", "batch_norm")
    return sum(any(name in str(node.target) for name in names) for node in graph.nodes if node.op == "call_function")


def faint(net, *paths):
    """The net, with layers whose weights are next to nothing."""
    with torch.no_grad():
        for path in paths:
            for value in net.get_submodule(path).parameters():
                value.mul_(1e-4)
    return net


def test_branches_are_found_with_the_blocks_that_go_with_them():
    found = {branch.last: branch for branch in find_branches(ResNet().eval(), image())}
    assert {path: branch.block for path, branch in found.items()} == {
        "blocks.0.conv2": "blocks.0",
        "blocks.1.conv2": None,
        "blocks.2.conv2": "blocks.2",
    } or {*found} == {"blocks.0.conv2", "blocks.2.conv2"}
    assert found["blocks.0.conv2"].norm == "blocks.0.norm2"
    found = {branch.last: branch.block for branch in find_branches(Vit().eval(), image())}
    assert found == dict.fromkeys(f"blocks.{i}.{name}" for i in (0, 1) for name in ("attention.proj", "down"))


def test_a_block_whose_branch_is_gone_gives_its_input_back():
    torch.manual_seed(1)
    net = MobileNetV2(10).eval()
    inputs = (torch.randn(2, 3, 32, 32),)
    branches = find_branches(net, inputs)
    assert [branch.block for branch in branches] == [f"features.{i}" for i in (5, 7, 8, 10, 11, 12, 14, 15, 17, 18)]
    before = operators(net, inputs)
    erase(net, branches[:2])
    assert isinstance(net.features[5], nn.Identity)
    assert operators(net, inputs) == before - 2 * 7
    assert net(*inputs).shape == (2, 10)


def test_what_is_left_of_a_branch_inside_a_block_is_zeros():
    torch.manual_seed(1)
    net, inputs = Vit().eval(), image()
    before = operators(net, inputs)
    erase(net, [branch for branch in find_branches(net, inputs) if branch.last == "blocks.0.attention.proj"])
    assert isinstance(net.blocks[0].attention, Nothing)
    assert operators(net, inputs) == before - 3  # two linear layers and the attention; the addition stays
    x = net.patches(inputs[0])
    assert net(torch.cat([inputs[0]] * 3)).shape == (6, 10)
    assert x.shape[0] == 2


@pytest.mark.parametrize(
    ("make", "paths", "name"),
    [
        (ResNet, ("blocks.2.norm2",), "pruned-70flops-erase"),
        (Vit, ("blocks.1.down",), "pruned-70flops-erase"),
        (Vit, ("blocks.1.attention.proj",), "pruned-80flops-lasso-erase"),
    ],
)
def test_a_branch_of_little_worth_is_erased(make, paths, name):
    torch.manual_seed(1)
    net = faint(make().eval(), *paths)
    erased, narrow = (prune(net, one, example=image()) for one in (name, name.replace("-erase", "")))
    assert operators(erased.model, image()) < operators(narrow.model, image()) == operators(net, image())
    rows = {row.path: row for row in erased.decisions}
    assert rows[paths[0].replace("norm", "conv")].decision == "erased"
    assert [row for row in erased.decisions if row.decision == "erased" and "its branch is gone" in row.reason]
    percent = int(name[7:9])
    assert erased.after.macs <= erased.before.macs * percent / 100


def test_erasing_goes_with_training_to_zero():
    from tests.unit.converter.prune.nets import digits

    torch.manual_seed(1)
    net = faint(ResNet().eval(), "blocks.2.norm2")
    done = prune(net, "pruned-70flops-erase-oto", example=image(), loader=digits()[0][:6], epochs=2)
    assert isinstance(done.model.blocks[2], nn.Identity)


def test_groups_around_branches_may_go_as_a_whole():
    from ferryman.converter.prune.erase import with_branches

    net = ResNet().eval()
    groups = with_branches(net, find_groups(net, image()).groups, find_branches(net, image()))
    assert {group.branches for group in groups if not group.least} >= {("blocks.0.conv2",), ("blocks.2.conv2",)}


def test_pytorchs_own_attention_goes_with_all_its_layers():
    net, inputs = Encoder().eval(), image()
    open_attention(net)
    branches = find_branches(net, inputs)
    assert "encoder.layers.0.self_attn.out" in {branch.last for branch in branches}
    before, macs = operators(net, inputs), count(net, inputs).macs
    erase(net, [branch for branch in branches if branch.last == "encoder.layers.0.self_attn.out"])
    assert operators(net, inputs) <= before - 5  # four linear layers and the attention
    assert count(net, inputs).macs == macs - 2 * (4 * 8 * 32 * 32 + 2 * 8 * 8 * 32)
    assert net(*inputs).shape == (2, 10)


@pytest.mark.slow
def test_artifacts_lack_what_is_erased():
    with quiet():
        from ferryman.converter.backends import BACKENDS
    from ferryman.converter.capture import capture
    from ferryman.converter.source import make_source

    torch.manual_seed(1)
    net = faint(ResNet().eval(), "blocks.2.norm2")
    done = prune(net, "pruned-70flops-erase", example=image())
    for backend in BACKENDS.values():
        with quiet():
            sizes = [len(backend.lower(capture(make_source(one, image()))).data) for one in (net, done.model)]
        assert sizes[1] < 0.75 * sizes[0]
