from __future__ import annotations

import pytest
import torch
from torch import nn

from ferryman.converter.fold.deep_training import Fading, train_deep
from ferryman.converter.fold.merge import merge
from ferryman.runtime.contracts.errors import CallerError


def batches():
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    return [(x, (x[:, 0] * x[:, 1] > 0).long())]


def test_a_fading_activation_goes_from_itself_to_nothing():
    x = torch.linspace(-2, 2, 9)
    one = Fading(nn.ReLU())
    assert torch.equal(one(x), x.relu())
    one.share = 0.25
    assert torch.allclose(one(x), 0.75 * x.relu() + 0.25 * x)
    one.share = 1.0
    assert torch.equal(one(x), x)


def test_activations_fade_while_training_and_are_gone_afterwards():
    torch.manual_seed(0)
    fading = Fading(nn.Tanh())
    model = nn.Sequential(nn.Linear(6, 16), fading, nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    shares = []
    model[4].register_forward_pre_hook(lambda *_: None)

    class Watched(Fading):
        def forward(self, x):
            shares.append(self.share)
            return super().forward(x)

    model[1] = Watched(nn.Tanh())
    tuned = train_deep(model, batches(), epochs=6, lr=1e-2)

    assert shares == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert isinstance(model[1], Fading)
    assert model[1].share == 0
    assert isinstance(tuned.model[1], nn.Identity)
    assert tuned.losses[-1] < tuned.losses[0]
    assert not tuned.model.training
    x = torch.randn(1, 6)
    merged = merge(tuned.model, x)
    assert merged.layers == (3, 2)
    assert torch.allclose(merged.model(x), tuned.model(x), atol=1e-5)


def test_what_cannot_fade_is_refused():
    with pytest.raises(CallerError, match="nothing of the model fades"):
        train_deep(nn.Sequential(nn.Linear(6, 2)), batches(), epochs=4, lr=1e-2)
    with pytest.raises(CallerError, match="2 epochs or more"):
        train_deep(nn.Sequential(Fading(), nn.Linear(6, 2)), batches(), epochs=1, lr=1e-2)
