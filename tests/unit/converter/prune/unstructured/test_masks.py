"""Which weights become zero."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from ferryman.converter.prune.unstructured.masks import (
    apply_masks,
    choose_masks,
    depth_order,
    find_targets,
    lamp_scores,
    pattern_holds,
)
from ferryman.converter.prune.unstructured.recipe import Pattern, Sparsity, parse_sparsity
from ferryman.runtime.contracts.errors import CallerError


class Net(nn.Module):
    """Layers registered in another order than they are called in."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 10)
        self.wide = nn.Conv2d(8, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.stem = nn.Conv2d(3, 8, 3)
        self.unused = nn.Linear(4, 4)
        self.norm = nn.BatchNorm2d(16)

    def forward(self, x):
        return self.head(self.norm(self.wide(self.depthwise(self.stem(x)))).mean((2, 3)))


def zeros(masks):
    return sum(int((~mask).sum()) for mask in masks.values())


def test_first_convolution_depthwise_and_uncalled_layers_stay_dense():
    torch.manual_seed(0)
    layers = find_targets(Net(), parse_sparsity("sparse-90"), torch.randn(2, 3, 8, 8))

    assert list(layers.kinds) == ["stem", "depthwise", "wide", "head", "unused"]
    assert [target.paths for target in layers.targets] == [("wide",), ("head",)]
    assert layers.dense == {
        "stem": "the first convolution",
        "depthwise": "depthwise",
        "unused": "never called with the example",
    }


def test_without_an_example_the_order_of_registration_counts():
    layers = find_targets(Net(), parse_sparsity("sparse-90"))
    assert layers.dense == {"wide": "the first convolution", "depthwise": "depthwise"}


def test_layers_of_the_recipe_say_otherwise():
    torch.manual_seed(0)
    sparsity = Sparsity(percent=90, layers={"stem": 50, "depth*": 25, "head": 0})
    layers = find_targets(Net(), sparsity, torch.randn(2, 3, 8, 8))
    masks = {target.paths: mask for target, mask in choose_masks(layers.targets, sparsity).items()}

    assert layers.dense["head"] == "as the recipe says"
    assert {paths: round(float((~mask).float().mean()), 2) for paths, mask in masks.items()} == {
        ("stem",): 0.5,
        ("depthwise",): 0.25,
        ("wide",): 0.9,
    }


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(CallerError, match=r"no layer is named 'tail\*'; there are: head, wide"):
        find_targets(Net(), Sparsity(percent=90, layers={"tail*": 50}))


def test_what_cannot_be_pruned_says_why():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.head = nn.Embedding(16, 8), nn.Linear(8, 16, bias=False)
            self.head.weight = self.tokens.weight
            self.normed = parametrizations.weight_norm(nn.Linear(8, 8))
            self.state = nn.GRU(8, 8)

    with pytest.raises(CallerError, match="nothing of the model can be pruned") as error:
        find_targets(Tied(), parse_sparsity("sparse-2:4"))
    for said in (
        "head: its weights are another kind of layer's too",
        "tokens: only nn.Conv1d",
        "state: only nn.Conv1d",
    ):
        assert said in str(error.value)
    assert "normed: only nn.Conv1d" in str(error.value)  # a parametrized module has a class of its own


def test_attention_and_weights_of_two_layers_are_pruned():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    model.attention = nn.MultiheadAttention(8, 2)

    layers = find_targets(model, parse_sparsity("sparse-50"))

    assert [target.paths for target in layers.targets] == [("0", "1"), ("attention",), ("attention.out_proj",)]


def test_weights_that_are_not_finite_are_refused():
    model = nn.Linear(8, 8)
    with torch.no_grad():
        model.weight[0, 0] = float("nan")
    with pytest.raises(CallerError, match="not finite"):
        find_targets(model, parse_sparsity("sparse-50"))


@settings(deadline=None)
@given(percent=st.sampled_from([1, 33.3, 50, 90, 99]), layer=st.booleans(), seed=st.integers(0, 99), ties=st.booleans())
def test_the_number_of_zeros_is_exact(percent, layer, seed, ties):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(13, 7), nn.Conv2d(1, 1, 1), nn.Conv2d(5, 3, 3), nn.Linear(100, 11))
    if ties:
        for parameter in model.parameters():
            nn.init.ones_(parameter)
    sparsity = Sparsity(percent=percent, layer=layer)
    targets = find_targets(model, sparsity).targets
    masks = choose_masks(targets, sparsity)
    counts = [mask.numel() for mask in masks.values()]
    share = percent / 100
    assert zeros(masks) == (sum(round(share * count) for count in counts) if layer else round(share * sum(counts)))


def test_no_layer_loses_all_however_small_its_weights_are():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    with torch.no_grad():
        model[1].weight.mul_(1e-6)
    sparsity = parse_sparsity("sparse-90")
    shares = [
        float(mask.float().mean()) for mask in choose_masks(find_targets(model, sparsity).targets, sparsity).values()
    ]
    assert shares == pytest.approx([0.1, 0.1], abs=0.02)


def test_lamp_scores_are_those_of_the_paper():
    weight = torch.tensor([[3.0, -1.0], [0.0, 2.0]])
    assert lamp_scores(weight).tolist() == pytest.approx([0, 1 / 14, 4 / 13, 1])


SHAPES = [(8, 16), (5, 7), (6, 8, 3, 3), (6, 3, 3, 3), (4, 10, 5)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("kept", "of"), [(2, 4), (1, 4), (2, 8), (5, 8)])
def test_a_pattern_holds_in_the_order_of_the_operator(shape, kept, of):
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(shape))
    module = {2: nn.Linear, 3: nn.Conv1d, 4: nn.Conv2d}[len(shape)](1, 1, *[1] * (len(shape) > 2))
    module.weight = parameter
    before = parameter.detach().clone()
    sparsity = Sparsity(pattern=Pattern(kept=kept, of=of), layers={"1": 0})
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Linear(1, 1), module)
    apply_masks(choose_masks(find_targets(model, sparsity).targets, sparsity))

    # Tap by tap, channel by channel, written out: what the kernel walks along.
    taps = parameter.detach().reshape(shape[0], shape[1], -1)
    old = before.reshape(shape[0], shape[1], -1)
    rows = torch.cat([taps[:, :, tap] for tap in range(taps.shape[2])], 1)
    old_rows = torch.cat([old[:, :, tap] for tap in range(taps.shape[2])], 1)
    assert torch.equal(depth_order(parameter), rows)
    for row, old_row in zip(rows, old_rows, strict=True):
        for start in range(0, len(row), of):
            group, old_group = row[start : start + of], old_row[start : start + of]
            assert int((group != 0).sum()) == min(kept, len(group))
            assert torch.equal(group.abs().sort().values[-kept:], old_group.abs().sort().values[-kept:])
    assert pattern_holds(parameter, sparsity.pattern)
    assert not pattern_holds(before, sparsity.pattern)


def test_some_of_a_pattern_takes_what_can_be_spared_most():
    torch.manual_seed(0)
    model = nn.Linear(16, 16)
    sparsity = parse_sparsity("sparse-2:4")
    targets = find_targets(model, sparsity).targets
    part, whole = (choose_masks(targets, sparsity, done) for done in (0.25, 1))

    assert (zeros(part), zeros(whole)) == (32, 128)
    (partly,), (wholly,) = part.values(), whole.values()
    assert not (wholly & ~partly).any()
