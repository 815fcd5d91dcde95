"""Transformers are pruned in one shot by what becomes of later features."""

from __future__ import annotations

import pytest
import torch

from ferryman.converter.prune.criteria import Context
from ferryman.converter.prune.graph import find_groups
from ferryman.converter.prune.structured import prune
from ferryman.converter.prune.trajectory import Trajectory
from ferryman.converter.prune.units import silence_unit
from tests.unit.converter.prune.nets import Vit, accuracy, digits, image, trained


@pytest.fixture(scope="module")
def net():
    return trained(Vit(), epochs=6)


def groups_of(net):
    return find_groups(net, image(1)).groups


def test_heads_and_neurons_that_do_nothing_are_worth_nothing(net):
    import copy

    net = copy.deepcopy(net)
    with torch.no_grad():
        net.blocks[0].attention.proj.weight[:, 8:16] *= 1e-3
        net.blocks[1].down.weight[:, 5] *= 1e-3
    groups = groups_of(net)
    scores = Trajectory().score(Context(net, groups, image(1), digits()[0][:2]))
    heads = next(
        s for s, g in zip(scores, groups, strict=True) if "blocks.0.attention.qkv" in g.layers and g.kind == "heads"
    )
    neurons = next(s for s, g in zip(scores, groups, strict=True) if g.layers == ("blocks.1.up", "blocks.1.down"))
    assert int(heads.argmin()) == 1
    assert heads[1] < 1e-3 * heads.median()
    assert int(neurons.argmin()) == 5


def test_projections_find_what_masking_finds(net):
    """Of neurons both are to be had: the estimate for all at once, and masks one by one."""
    groups = [group for group in groups_of(net) if group.layers == ("blocks.0.up", "blocks.0.down")]
    context = Context(net, groups, image(1), digits()[0][:1])
    (estimate,) = Trajectory().score(context)
    held = []
    hooks = [
        part.register_forward_hook(lambda _, __, out: held.append(out))
        for part in net.modules()
        if isinstance(part, torch.nn.LayerNorm)
    ]

    @torch.no_grad()
    def features():
        held.clear()
        out = net(digits()[0][0][0])
        return [*held, out]

    dense, masked = features(), []
    for unit in range(24):
        with silence_unit(net, groups[0], unit):
            masked.append(
                sum(float((a - b).square().sum() / b.square().sum()) for a, b in zip(features(), dense, strict=True))
            )
    for hook in hooks:
        hook.remove()
    pair = torch.stack([torch.tensor(masked).log(), estimate[:24].log()])
    assert float(torch.corrcoef(pair)[0, 1]) > 0.9


def test_no_training_is_needed(net):
    dense = accuracy(net)
    done = prune(net, "pruned-70flops-trajectory", example=image(1), loader=digits()[0], epochs=0)
    assert done.after.macs <= 0.7 * done.before.macs
    assert accuracy(done.model) > dense - 0.06
