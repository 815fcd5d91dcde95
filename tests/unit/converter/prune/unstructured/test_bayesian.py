"""Sparse variational layers, the basis that changes, and what is converted of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.prune.unstructured.bayesian import (
    VariationalConv2d,
    VariationalLinear,
    change_basis,
    ensemble,
    posterior_mean,
    signal_to_noise,
    train_variational,
)
from ferryman.runtime.contracts.errors import CallerError


def net(share=0.8):
    torch.manual_seed(0)
    return nn.Sequential(
        VariationalConv2d(1, 8, 3, 2, 1, share=share),
        nn.ReLU(),
        nn.Flatten(),
        VariationalLinear(8 * 16, 3, share=share),
    )


def batches(count=12):
    """Which third of a picture is bright."""
    torch.manual_seed(1)
    made = []
    for _ in range(count):
        labels = torch.randint(0, 3, (32,))
        images = 0.5 * torch.randn(32, 1, 8, 8)
        for image, label in zip(images, labels, strict=True):
            image[:, 2 * int(label) : 2 * int(label) + 3] += 1
        made.append((images, labels))
    return made


def test_signal_to_noise_is_that_of_magnitudes():
    torch.manual_seed(0)
    mean, variance = torch.tensor([0.0, 0.3, -1.0, 2.0]), torch.tensor([0.5, 0.2, 1.0, 0.1])
    drawn = (mean + variance.sqrt() * torch.randn(400_000, 4)).abs()
    torch.testing.assert_close(signal_to_noise(mean, variance), drawn.mean(0) / drawn.std(0), rtol=0.01, atol=0)
    assert float(signal_to_noise(mean, variance)[0]) == pytest.approx(math.sqrt(2 / (math.pi - 2)))


def test_divergence_is_that_of_normal_distributions_of_what_is_chosen():
    layer = net()[3]
    with torch.no_grad():
        layer.spread.normal_(0, 0.3)
    found = torch.distributions.kl_divergence(
        torch.distributions.Normal(layer.mean[layer.chosen], layer.variance[layer.chosen].sqrt()),
        torch.distributions.Normal(0.0, 1.0),
    ).sum()
    assert float(layer.divergence().detach()) == pytest.approx(float(found.detach()), rel=1e-5)


@pytest.mark.parametrize("make", [lambda: net()[0], lambda: net()[3]])
def test_noise_of_outputs_is_what_noise_of_weights_makes(make):
    layer = make()
    with torch.no_grad():
        layer.spread.fill_(0.3)
    torch.manual_seed(0)
    x = torch.randn(1, 1, 8, 8) if isinstance(layer, VariationalConv2d) else torch.randn(1, 128)
    with torch.no_grad():
        layer.train()
        by_outputs = torch.cat([layer(x) for _ in range(2000)])
        by_weights = torch.cat([layer.plain(layer.sample())(x) for _ in range(2000)])
        layer.eval()
        torch.testing.assert_close(layer(x), layer.plain(layer.mean)(x))
    torch.testing.assert_close(by_outputs.mean(0), by_weights.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(by_outputs.std(0), by_weights.std(0), atol=0.02, rtol=0.12)


def test_the_basis_takes_where_the_loss_asks_and_gives_where_there_is_no_signal():
    layers = [net(0.5)[3]]
    (layer,) = layers
    before = layer.chosen.clone()
    layer.mean.grad = torch.where(layer.chosen, 100.0, torch.arange(384.0).view_as(layer.mean))
    telling = signal_to_noise(layer.mean, layer.variance).masked_fill(~before, math.inf).flatten()

    changed = change_basis(layers, 0.1)

    removed = (before & ~layer.chosen).flatten().nonzero().flatten()
    added = (layer.chosen & ~before).flatten().nonzero().flatten()
    assert changed == len(removed) == len(added) == 19
    assert set(removed.tolist()) == set(telling.argsort()[:19].tolist())
    outside = (~before).flatten().nonzero().flatten()
    assert added.tolist() == outside[-19:].tolist()
    assert not layer.mean.flatten()[torch.cat([removed, added])].any()
    assert not layer.spread.flatten()[added].any()


def test_layers_compete_and_none_loses_all():
    layers = [net(0.5)[0], net(0.5)[3]]
    layers[0].mean.grad, layers[1].mean.grad = (torch.zeros_like(layer.mean) for layer in layers)
    layers[1].mean.grad.fill_(1.0)
    with torch.no_grad():
        layers[0].mean.mul_(1e-3)  # nothing but noise
    count = sum(int(layer.chosen.sum()) for layer in layers)
    for _ in range(10):
        change_basis(layers, 0.1)
        with torch.no_grad():
            layers[1].mean.add_(layers[1].chosen)  # what is new gets a signal
    assert int(layers[0].chosen.sum()) == 4
    assert sum(int(layer.chosen.sum()) for layer in layers) == count


def test_training_learns_with_as_many_weights_all_the_time():
    model, data = net(), batches()
    layers = [model[0], model[3]]
    count = sum(int(layer.chosen.sum()) for layer in layers)
    before = [layer.chosen.clone() for layer in layers]
    seen = set()
    model.register_forward_pre_hook(
        lambda *_: seen.add(sum(int((one.mean != 0).sum()) <= int(one.chosen.sum()) for one in layers))
    )

    trained = train_variational(model, data, samples=384, epochs=8, lr=1e-2, temperature=0.1)

    assert trained.losses[-1] < trained.losses[0] / 2
    assert seen == {2}
    assert sum(int(layer.chosen.sum()) for layer in layers) == count
    assert any(not torch.equal(layer.chosen, old) for layer, old in zip(layers, before, strict=True))

    images, labels = batches(16)[-1]
    mean = posterior_mean(model)
    assert [type(part) for part in mean] == [nn.Conv2d, nn.ReLU, nn.Flatten, nn.Linear]
    assert not mean.training
    for layer, made in zip(layers, (mean[0], mean[3]), strict=True):
        assert not made.weight[~layer.chosen].any()
    assert float((mean(images).argmax(1) == labels).float().mean()) > 0.9
    torch.testing.assert_close(mean(images), model.eval()(images))
    _knows_what_it_does_not_know(model, images, labels)


def _knows_what_it_does_not_know(model, images, labels):
    torch.manual_seed(2)
    made = ensemble(model, 6)
    known, unknown = made.believe(images), made.believe(2 * torch.randn_like(images))
    each = torch.stack([functional.softmax(member(images), 1) for member in made.members])

    torch.testing.assert_close(known.probabilities, each.mean(0))
    torch.testing.assert_close(known.entropy, torch.distributions.Categorical(each.mean(0)).entropy())
    inner = torch.distributions.Categorical(each).entropy().mean(0)
    torch.testing.assert_close(known.disagreement, known.entropy - inner, atol=1e-5, rtol=1e-4)
    assert float((known.probabilities.argmax(1) == labels).float().mean()) > 0.9
    assert float(unknown.disagreement.mean()) > 1.5 * float(known.disagreement.mean()) > 0
    for member in made.members:
        assert not member[3].weight[~model[3].chosen].any()
    assert not torch.equal(made.members[0][3].weight, made.members[1][3].weight)


def test_a_single_layer_is_a_model_too():
    layer = net()[3]
    assert type(posterior_mean(layer)) is nn.Linear


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: VariationalLinear(4, 4, share=1.0), "0 to below 1, found 1.0"),
        (lambda: posterior_mean(nn.Linear(4, 4)), "no variational layers: build it of VariationalLinear"),
        (lambda: ensemble(net(), 1), "2 members or more, found 1"),
        (lambda: train_variational(net(), [], samples=0, epochs=1, lr=1e-3), "samples is a whole number"),
        (lambda: train_variational(net(), [], samples=1, epochs=1, lr=1e-3), "gives no batches"),
        (lambda: train_variational(net(), batches(1), samples=1, epochs=1, lr=1e-3, temperature=0), "temperature is"),
        (lambda: train_variational(net(), batches(1), samples=1, epochs=0, lr=1e-3), "epochs is a whole number"),
    ],
)
def test_what_cannot_be_is_refused(call, said):
    with pytest.raises(CallerError, match=said):
        call()
