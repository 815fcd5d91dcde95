"""What is gone is made good in the weights that read the rest, without data."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.capture import capture
from ferryman.converter.prune.graph import find_groups, run
from ferryman.converter.prune.moments import covariance, expand
from ferryman.converter.prune.reconstruct import reconstruct
from ferryman.converter.prune.structured import prune
from ferryman.converter.prune.units import remove
from ferryman.converter.quantize.lower import lower_quantized
from ferryman.converter.quantize.recipe import parse_recipe
from ferryman.converter.source import make_source
from tests.unit.converter.prune.nets import ResNet, Vit, accuracy, digits, image, norm, trained


def vgg():
    torch.manual_seed(0)
    layers, inside = [], 1
    for outside, stride in ((16, 1), (32, 2), (32, 1)):
        layers += [nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()]
        inside = outside
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))


@pytest.fixture(scope="module")
def net():
    return trained(vgg(), epochs=4)


def error(found, wanted):
    return float((found - wanted).square().sum() / wanted.square().sum())


def test_moments_behind_an_activation_are_those_of_samples():
    torch.manual_seed(0)
    mean, spread = torch.tensor([0.5, -0.3, 1.0]), torch.tensor([1.0, 0.7, -0.5])
    mix = torch.tensor([[1.0, 0.6, -0.4], [0.6, 1.0, 0.1], [-0.4, 0.1, 1.0]])
    u = torch.randn(400_000, 3) @ torch.linalg.cholesky(mix).T
    for curve in (torch.relu, functional.gelu, functional.relu6):
        samples = curve(mean + spread * u).double()
        series = expand(mean, spread, curve)
        torch.testing.assert_close(series.mean, samples.mean(0), atol=5e-3, rtol=0)
        torch.testing.assert_close(series.variance, samples.var(0), atol=5e-3, rtol=0)
        found = covariance(series, series, mix.double())
        wanted = torch.cov(samples.T)
        off = ~torch.eye(3, dtype=torch.bool)
        torch.testing.assert_close(found[off], wanted[off], atol=5e-3, rtol=0)


def test_a_channel_that_repeats_others_is_made_good_whole():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), norm(8), nn.ReLU(), nn.Conv2d(8, 4, 3, bias=False), norm(4)
    ).eval()
    with torch.no_grad():
        for value in (net[0].weight, net[1].weight, net[1].bias, net[1].running_mean, net[1].running_var):
            value[7] = value[2]
    inputs = (torch.randn(4, 3, 9, 9),)
    (group,) = find_groups(net, inputs).groups
    wanted = run(net, inputs)[0]
    thin, good = copy.deepcopy(net), copy.deepcopy(net)
    assert reconstruct(good, [group], {0: frozenset({7})}, inputs) == 1
    for one in (thin, good):
        remove(one, [group], {0: frozenset({7})})
    assert error(run(good, inputs)[0], wanted) < 0.02 < 0.2 * error(run(thin, inputs)[0], wanted)


def test_nothing_changes_where_nothing_goes(net):
    groups = find_groups(net, image(1)).groups
    same = copy.deepcopy(net)
    assert reconstruct(same, groups, {}, image(1)) == 0
    assert all(torch.equal(one, net.state_dict()[key]) for key, one in same.state_dict().items())


@pytest.mark.parametrize(("name", "least"), [("pruned-60flops", 0.9), ("pruned-40flops", 0.75)])
def test_reconstruction_beats_none(net, name, least):
    plain = accuracy(prune(net, f"{name}-plain", example=image(1)).model)
    found = accuracy(prune(net, name, example=image(1)).model)
    assert found > max(plain + 0.1, least)


def test_reconstruction_beats_none_in_residual_and_transformer_blocks():
    net = trained(ResNet(), epochs=4)
    plain = accuracy(prune(net, "pruned-60flops-plain", example=image(1)).model)
    assert accuracy(prune(net, "pruned-60flops", example=image(1)).model) > max(plain + 0.1, 0.85)
    groups = find_groups(net, image(1)).groups
    inner = {
        number: frozenset(range(0, group.count, 2)) for number, group in enumerate(groups) if len(group.slots) == 3
    }
    assert len(inner) == 3
    thin, good = copy.deepcopy(net), copy.deepcopy(net)
    assert reconstruct(good, groups, inner, image(1)) == 3
    for one in (thin, good):
        remove(one, groups, inner)
    assert accuracy(good) > accuracy(thin) + 0.1
    torch.manual_seed(0)
    vit = trained(Vit(), epochs=4)
    groups = find_groups(vit, image(1)).groups
    number = next(number for number, group in enumerate(groups) if "blocks.1.up" in group.layers and not group.mixes)
    removed = {number: frozenset(range(0, 128, 2))}
    thin, good = copy.deepcopy(vit), copy.deepcopy(vit)
    assert reconstruct(good, groups, removed, image(1)) == 1
    for one in (thin, good):
        remove(one, groups, removed)
    images = digits()[1]
    with torch.no_grad():
        assert error(good(images), vit(images)) < 0.7 * error(thin(images), vit(images))


def quantized(model, images, form):
    """What the rounded program gives."""
    done = lower_quantized(capture(make_source(model.eval(), (images,))), parse_recipe(form), [(images[:64],)])
    with torch.no_grad():
        return done[0].program.module()(images)


@pytest.mark.parametrize("bits", [4, 2])
def test_rounding_is_made_good_as_pruning_is(net, bits):
    _, images, _ = digits()
    groups = find_groups(net, image(1)).groups
    removed = {number: frozenset(range(0, group.count, 3)) for number, group in enumerate(groups)}
    made = {}
    for name, bits_of in (("plain", 0), ("pruned", None), ("both", bits)):
        made[name] = copy.deepcopy(net)
        if bits_of != 0:
            assert reconstruct(made[name], groups, removed, image(1), bits=bits_of)
        remove(made[name], groups, removed)
    with torch.no_grad():
        wanted = net(images)
    lost = {name: error(quantized(one, images, f"{bits}bit"), wanted) for name, one in made.items()}
    assert lost["both"] < 0.7 * lost["plain"]
    assert lost["both"] < 1.02 * lost["pruned"]


def test_pruning_for_four_bits_is_nearer_once_rounded(net):
    _, images, _ = digits()
    with torch.no_grad():
        wanted = net(images)
    lost = {}
    for name, bits in (("pruned-60flops-plain", None), ("pruned-60flops", None), ("pruned-60flops", 4)):
        made = prune(net, name, example=image(1), bits=bits).model
        lost[name, bits] = error(quantized(made, images, "4bit"), wanted)
    assert lost["pruned-60flops", 4] < 0.65 * lost["pruned-60flops-plain", None]
    assert lost["pruned-60flops", 4] < lost["pruned-60flops", None]
