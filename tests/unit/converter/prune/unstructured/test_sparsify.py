"""A dense model in, one with zeros out."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.prune.unstructured.masks import pattern_holds
from ferryman.converter.prune.unstructured.recipe import Pattern, Sparsity
from ferryman.converter.prune.unstructured.sparsify import sparsify
from ferryman.runtime.contracts.errors import CallerError
from tests.e2e import digits


@pytest.fixture(scope="module")
def dense():
    return digits.train()


@pytest.fixture(scope="module")
def example():
    return (digits.images()[1][:1],)


def zeros(model):
    weights = [model.features[3].weight, model.features[6].weight, model.classifier.weight]
    return sum(int((weight == 0).sum()) for weight in weights)


COUNT = 64 * 32 * 9 + 128 * 64 * 9 + 1280


@pytest.mark.parametrize("name", ["sparse-90", "sparse-90-shrink"])
def test_training_beats_cutting_off_at_once(dense, example, name):
    before = copy.deepcopy(dense.state_dict())
    told = []

    at_once = sparsify(dense, name, example=example)
    torch.manual_seed(0)
    trained = sparsify(
        dense, name, loader=digits.Batches(), epochs=3, example=example, progress=lambda *said: told.append(said)
    )

    for made in (at_once, trained):
        assert zeros(made.model) == round(0.9 * COUNT)
        assert not made.model.training
        assert [type(part) for part in made.model.modules()] == [type(part) for part in dense.modules()]
        assert made.sparsity.name == name
    assert at_once.losses == ()
    assert told == [(epoch + 1, 3, loss) for epoch, loss in enumerate(trained.losses)]
    assert digits.accuracy(dense) > 0.97
    assert digits.accuracy(trained.model) > max(0.95, digits.accuracy(at_once.model) + 0.3)
    assert all(torch.equal(value, before[key]) for key, value in dense.state_dict().items())


def test_a_pattern_holds_after_training(dense):
    torch.manual_seed(0)
    made = sparsify(dense, "sparse-1:4", loader=digits.Batches(), epochs=2)

    for layer in (made.model.features[3], made.model.features[6], made.model.classifier):
        assert pattern_holds(layer.weight, Pattern(kept=1, of=4))
        assert int((layer.weight == 0).sum()) == layer.weight.numel() * 3 // 4
    assert digits.accuracy(made.model) > 0.95


def test_decisions_say_what_became_of_each_layer(dense, example):
    made = sparsify(dense, Sparsity(percent=80, layer=True, layers={"classifier": 25}), example=example)

    said = {one.path: (one.kind, one.decision, one.reason) for one in made.decisions}
    assert said == {
        "features.0": ("Conv2d", "float", "the first convolution"),
        "features.3": ("Conv2d", "sparse", "80.0% zero: the layer's percent"),
        "features.6": ("Conv2d", "sparse", "80.0% zero: the layer's percent"),
        "classifier": ("Linear", "sparse", "25.0% zero: as the recipe says"),
    }
    assert made.zeros == pytest.approx({"features.3": 0.8, "features.6": 0.8, "classifier": 0.25}, abs=1e-4)


def test_the_same_seed_gives_the_same_model(dense):
    made = []
    for _ in range(2):
        torch.manual_seed(3)
        made.append(sparsify(dense, "sparse-95", loader=digits.Batches(256), epochs=1).model.state_dict())
    assert all(torch.equal(value, made[1][key]) for key, value in made[0].items())


def test_another_loss_goes_without_distillation():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)).train()
    x = torch.randn(64, 8)

    made = sparsify(model, "sparse-50", loader=[(x, x)] * 20, epochs=5, lr=1e-2, loss=functional.mse_loss)

    assert made.losses[-1] < made.losses[0]
    assert model.training


def test_what_does_not_go_together_is_refused(dense):
    with pytest.raises(CallerError, match="form 'sparse' needs its amount"):
        sparsify(dense, "sparse")
    with pytest.raises(CallerError, match="goes with a loader"):
        sparsify(dense, "sparse-50", distil=True)
    with pytest.raises(CallerError, match="goes with a loader and the loss cross_entropy"):
        sparsify(dense, "sparse-50", loader=digits.Batches(), distil=True, loss=functional.mse_loss)
    with pytest.raises(CallerError, match="epochs is a whole number"):
        sparsify(dense, "sparse-50", loader=digits.Batches(), epochs=0)
    with pytest.raises(CallerError, match="epochs is a whole number"):
        sparsify(dense, "sparse-50-shrink", loader=digits.Batches(), epochs=1.5)
    with pytest.raises(CallerError, match="only once"):
        sparsify(dense, "sparse-50", loader=iter(()))
    with pytest.raises(CallerError, match="the model fails with the example"):
        sparsify(dense, "sparse-50", example=torch.zeros(3))
    with pytest.raises(CallerError, match="it has no convolutions or linear layers"):
        sparsify(nn.ReLU(), "sparse-50")
