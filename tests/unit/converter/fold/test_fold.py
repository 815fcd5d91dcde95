from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.compress.api import compress
from ferryman.converter.compress.training import train
from ferryman.converter.fold.blocks import find_blocks, run
from ferryman.converter.fold.fold import fold
from ferryman.converter.fold.importance import Asked, least
from ferryman.converter.fold.recipe import Folding
from ferryman.converter.fold.registry import find_importance
from ferryman.runtime.contracts.errors import CallerError, ModelError
from tests.unit.converter.fold.nets import WAYS, Block, Decoder, words

IDS = torch.arange(8).reshape(2, 4)


def silent(model: Decoder, *indexes: int) -> Decoder:
    """Blocks that add next to nothing."""
    for index in indexes:
        nn.init.constant_(model.blocks[index].gain, 1e-3)
    return model.eval()


@pytest.mark.parametrize("way", WAYS)
def test_removed_blocks_are_passed_by_however_the_list_is_called(way):
    model = silent(Decoder(way=way), 1, 4)
    before = copy.deepcopy(model.state_dict())

    made = fold(model, "folded-1-drop33", example=IDS)

    decisions = [one.decision for one in made.decisions]
    if way != "zip":  # norms after each block make even silent ones unlike their input
        assert decisions == ["kept", "removed", "kept", "kept", "removed", "kept"]
    gone = [index for index, one in enumerate(decisions) if one == "removed"]
    with find_blocks(model, IDS).seen(lambda index, x, _: x if index in gone else None):
        (expected,) = run(model, IDS)
    assert torch.allclose(made.model(IDS), expected, atol=1e-5)
    assert len(list(made.model.blocks)) == (6 if way in ("counted", "zip") else 4)
    assert sum(isinstance(one, Block) for one in made.model.modules()) == 4
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_groups_share_the_very_weights_but_for_norms():
    model = Decoder()
    made = fold(model, "folded-3", example=IDS)
    blocks = list(made.model.blocks)
    for group in (blocks[:3], blocks[3:]):
        for block in group[1:]:
            assert block.up.weight is group[0].up.weight
            assert block.up.bias is group[0].up.bias
            assert block.norm.weight is not group[0].norm.weight
            assert block.gain is not group[0].gain
    assert blocks[0].up.weight is not blocks[3].up.weight
    assert [one.decision for one in made.decisions].count("shared") == 4
    importances = [float(one.reason.split("importance ")[1].split()[0]) for one in made.decisions]
    seeds = [index for index, one in enumerate(made.decisions) if one.decision == "kept"]
    assert [importances[seed] for seed in seeds] == [max(importances[:3]), max(importances[3:])]
    # The seed's weights are the dense model's.
    assert torch.equal(blocks[seeds[0]].down.weight, model.blocks[seeds[0]].down.weight)
    assert f"shares the weights of blocks.{seeds[0]}, but for norms" in {
        one.reason.partition(";")[0] for one in made.decisions
    }


def test_what_is_left_over_makes_a_smaller_group():
    made = fold(Decoder(5), "folded-2", example=IDS)
    blocks = list(made.model.blocks)
    assert [one.decision for one in made.decisions].count("shared") == 2
    assert len({id(one.up.weight) for one in blocks}) == 3
    assert "group" not in made.decisions[4].reason


def test_gates_close_where_a_block_does_nothing():
    model = silent(Decoder(), 1, 4)
    train(model, words(), epochs=6, lr=1e-2)
    silent(model, 2)
    before = copy.deepcopy(model.state_dict())
    blocks = find_blocks(model, IDS)
    asked = Asked(model, blocks, IDS, words(), functional.cross_entropy, 1)
    importances = find_importance("gates")(asked)
    assert least(importances) == [2]
    assert all(0 <= one <= 1 for one in importances)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(one.requires_grad for one in model.parameters())


def test_gates_close_together_where_the_budget_asks():
    """Two blocks that undo each other: either alone seems to matter, and both together do nothing."""
    model = Decoder(4)
    with torch.no_grad():
        for name in ("up", "down"):
            getattr(model.blocks[2], name).load_state_dict(getattr(model.blocks[1], name).state_dict())
        for block in (model.blocks[1], model.blocks[2]):
            block.norm.weight.zero_()  # what they add does not depend on x
            block.norm.bias.fill_(1.0)
        model.blocks[1].gain.fill_(30.0)
        model.blocks[2].gain.fill_(-30.0)
    data = words()
    train(model, data, epochs=1, lr=1e-5)
    teacher = copy.deepcopy(model).eval()
    data = [(ids, teacher(ids).detach().argmax(1)) for ids, _ in data]
    asked = Asked(model, find_blocks(model, IDS), IDS, data, functional.cross_entropy, 2)
    assert sorted(least(find_importance("gates")(asked), count=2)) == [1, 2]
    assert 0 in least(find_importance("similar")(asked), count=2) or 3 in least(
        find_importance("similar")(asked), count=2
    )


def test_the_cure_brings_the_answers_back():
    torch.manual_seed(0)
    model = Decoder(4).eval()
    data = words(256)
    train(model, data, epochs=12, lr=1e-2)
    plain = compress(model, "folded-2-drop25-plain", loader=data)
    cured = compress(model, "folded-2-drop25", loader=data, epochs=6, lr=5e-3)

    @torch.no_grad()
    def loss(one):
        return sum(float(functional.cross_entropy(one(ids), wanted)) for ids, wanted in data) / len(data)

    assert loss(cured.model) < loss(plain.model)
    assert cured.form == "fp32"
    assert not plain.losses
    assert cured.losses[-1] < cured.losses[0]
    blocks = list(cured.model.blocks)
    assert blocks[0].up.weight is blocks[1].up.weight
    assert not torch.equal(blocks[0].norm.weight, blocks[1].norm.weight)
    assert not cured.model.training
    assert len({id(one) for one in cured.model.parameters()}) == len(list(cured.model.parameters()))


def test_own_losses_and_answers_without_classes_are_learned_too():
    class Numbers(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.Sequential(*(Block() for _ in range(3)))

        def forward(self, x):
            return self.blocks(x)

    torch.manual_seed(0)
    x = torch.randn(8, 16)
    data = [(x, x.roll(1, 1))]
    made = compress(Numbers(), "folded-3", loader=data, loss=functional.mse_loss, epochs=3)
    alone = compress(Numbers(), "folded-3", loader=data, loss=functional.mse_loss, epochs=3, distil=False)
    assert len(made.losses) == len(alone.losses) == 3


def test_someone_elses_transformer_is_folded():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.TransformerEncoder(layer, 4, enable_nested_tensor=False), nn.Linear(16, 3)).eval()
    x = torch.randn(2, 5, 16)
    made = compress(model, "folded-2", example=(x,))
    assert [one.path for one in made.decisions] == [f"0.layers.{index}" for index in range(4)]
    layers = made.model[0].layers
    assert layers[0].self_attn.in_proj_weight is layers[1].self_attn.in_proj_weight
    assert made.model(x).shape == (2, 5, 3)


class Two(nn.Module):
    """Two lists."""

    def __init__(self):
        super().__init__()
        self.first = nn.ModuleList(Block() for _ in range(2))
        self.second = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x):
        for one in (*self.first, *self.second):
            x = one(x)
        return x


def test_of_several_lists_one_is_named():
    x = torch.randn(1, 16)
    with pytest.raises(CallerError, match=r"several lists of blocks: first \(2 Block\), second \(3 Block\); name one"):
        fold(Two(), "folded-2", example=x)
    with pytest.raises(CallerError, match=r"no list of like blocks named 'third'; there are: first"):
        compress(Two(), "folded-2", example=x, blocks="third")
    made = compress(Two(), "folded-2", example=x, blocks="second")
    assert [one.path for one in made.decisions] == ["second.0", "second.1", "second.2"]


def test_of_several_kinds_in_one_list_one_is_named_by_its_first_block():
    model = nn.Sequential(Block(), Block(), nn.Linear(16, 16), Block(), Block(), Block())
    x = torch.randn(1, 16)
    with pytest.raises(CallerError, match=r"0 \(2 Block\), 3 \(3 Block\); name one \(blocks='0'\)"):
        fold(model, "folded-2", example=x)
    for name, paths in (("0", ["0", "1"]), ("3", ["3", "4", "5"])):
        made = fold(model, "folded-2", example=x, blocks=name)
        assert [one.path for one in made.decisions] == paths
        several = [made.model.get_submodule(path) for path in paths[:2]]
        assert len({id(next(part for part in one.parameters() if part.ndim > 1)) for one in several}) == 1


class Growing(nn.Module):
    """Blocks that change their input's shape."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2)) for _ in range(3)))

    def forward(self, x):
        return self.blocks(x)


class Repeated(nn.Module):
    """Blocks that are called twice."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x):
        for one in (*self.blocks, *self.blocks):
            x = one(x)
        return x


@pytest.mark.parametrize(
    ("model", "x", "error", "said"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.ones(1, 4), CallerError, "no list of blocks"),
        (Growing(), torch.ones(1, 2, 9, 9), ModelError, r"makes \[1, 2, 7, 7\] of \[1, 2, 9, 9\]"),
        (Repeated(), torch.ones(1, 16), ModelError, r"in the order \[0, 1, 0, 1\]"),
        (Decoder(), torch.ones(1, 4), CallerError, "the model fails with the example"),
    ],
)
def test_models_that_cannot_be_folded_are_refused(model, x, error, said):
    with pytest.raises(error, match=said):
        fold(model, "folded-2", example=x)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("folded-2-drop5", "less than half a block; drop 9 or more"),
        ("folded-2-drop90", "1 would be left, too few"),
        (Folding(group=1), "does nothing"),
    ],
)
def test_too_much_or_too_little_is_refused(form, said):
    with pytest.raises(CallerError, match=said):
        fold(Decoder(), form, example=IDS)


@pytest.mark.parametrize(
    ("loader", "said"),
    [
        ([], "no batches"),
        ([(IDS, torch.tensor([99, 0]))], "batch 1 cannot be used"),
        ([IDS], "must give"),
    ],
)
def test_loaders_that_do_not_suit_are_refused(loader, said):
    with pytest.raises(CallerError, match=said):
        fold(Decoder(), "folded-2", example=IDS, loader=loader)


def test_arguments_of_other_forms_are_refused():
    with pytest.raises(CallerError, match="blocks is for folded forms"):
        compress(Decoder(), "pruned-50flops", example=IDS, blocks="blocks")
    with pytest.raises(CallerError, match="latency is for pruned"):
        compress(Decoder(), "folded-2", example=IDS, latency=lambda _: 1.0)
    with pytest.raises(CallerError, match="needs an example"):
        compress(Decoder(), "folded-2")
