from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.compress.binary import NO_NEGATIVE_INPUTS, binarize
from ferryman.converter.compress.binary_modules import BinaryLinear
from ferryman.runtime.contracts.errors import CallerError
from tests.zoo.models import MobileNetV2, ResNet20


def reasons(model, **options):
    return {found.path: (found.decision, found.reason) for found in binarize(model, **options)[1]}


def linears(count):
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(count)))


def test_the_first_and_the_last_layer_stay_float():
    assert reasons(linears(4)) == {
        "0": ("float", "the first layer"),
        "1": ("binary", "the default"),
        "2": ("binary", "the default"),
        "3": ("float", "the last layer"),
    }


def test_an_embedding_counts_as_the_first_layer():
    found = reasons(nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 4), nn.Linear(4, 2)))

    assert [decision for decision, _ in found.values()] == ["float", "binary", "float"]


class Backwards(nn.Module):
    """Layers registered in another order than they are called."""

    def __init__(self):
        super().__init__()
        self.head, self.body, self.stem = nn.Linear(4, 2), nn.Linear(4, 4), nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)

    def forward(self, x):
        return self.head(self.second(self.body(self.stem(x))))


def test_an_example_tells_which_layers_are_first_and_last():
    found = reasons(Backwards(), example=torch.randn(2, 4))

    assert list(found) == ["stem", "body", "second", "head", "unused"]
    assert found["stem"] == ("float", "the first layer")
    assert found["head"] == ("float", "the last layer")
    assert found["unused"] == ("float", "never called with the example")
    assert reasons(Backwards())["head"] == ("float", "the first layer")  # without one: by registration


def test_downsampling_1x1_and_depthwise_convolutions_stay_float():
    resnet = reasons(ResNet20())
    mobile = reasons(MobileNetV2())

    assert resnet["blocks.3.down.0"] == ("float", "a down-sampling 1x1 convolution")
    assert resnet["blocks.3.conv1"] == ("binary", "the default")
    depthwise = [path for path, (_, reason) in mobile.items() if reason == "depthwise"]
    assert len(depthwise) == 17


def test_patterns_keep_layers_and_must_match_one():
    found = reasons(linears(6), keep=["2", "[34]"])

    assert [decision for decision, _ in found.values()] == ["float", "binary", "float", "float", "float", "float"]
    assert found["3"] == ("float", "kept by '[34]'")
    with pytest.raises(CallerError, match=r"no layer is named 'body\.\*'; there are: 0, 1, 2"):
        binarize(linears(3), keep=["body.*"])


def test_layers_that_others_read_the_weights_of_stay_float():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.body, self.other, self.head = (
                nn.Embedding(8, 4),
                nn.Linear(4, 4),
                nn.Linear(4, 8, bias=False),
                nn.Linear(8, 2),
            )
            self.other.weight = self.tokens.weight

    encoder = nn.Sequential(
        nn.Linear(8, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 8), nn.Linear(8, 8)
    )

    assert reasons(Tied())["other"] == ("float", "its weights are another layer's too")
    assert reasons(Tied())["body"] == ("binary", "the default")
    found = reasons(encoder)
    assert {path: decision for path, (decision, _) in found.items()} == {
        "0": "float",
        "1.self_attn.out_proj": "float",
        "1.linear1": "float",
        "1.linear2": "float",
        "2": "binary",
        "3": "float",
    }


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "padding_mode='reflect'"),
        (nn.Conv1d(4, 4, 3), "only nn.Conv2d and nn.Linear"),
        (nn.ConvTranspose2d(4, 4, 3), "only nn.Conv2d and nn.Linear"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), "only nn.Conv2d and nn.Linear"),
    ],
)
def test_what_has_no_binary_form_stays_float_and_says_why(layer, reason):
    found = reasons(nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 4)))

    assert found["1"][0] == "float"
    assert reason in found["1"][1]


@pytest.mark.parametrize(
    "register",
    [
        nn.Linear.register_forward_hook,
        nn.Linear.register_forward_pre_hook,
        nn.Linear.register_full_backward_hook,
        nn.Linear.register_full_backward_pre_hook,
    ],
)
def test_layers_with_hooks_stay_float(register):
    model = linears(4)
    register(model[1], lambda *_: None)
    found = reasons(model, example=torch.randn(2, 4))

    assert found["1"] == ("float", "it has hooks, which a binary layer would not have")
    assert found["2"] == ("binary", "the default")


def test_frozen_layers_stay_float_and_frozen():
    model = linears(4)
    model[1].weight.requires_grad = False
    binary, report = binarize(model)

    assert (report[1].decision, report[1].reason[:12]) == ("float", "it is frozen")
    assert not binary[1].weight.requires_grad
    assert report[2].decision == "binary"


@pytest.mark.parametrize("example", [torch.randn(2, 5), (torch.randn(2, 4), torch.randn(2, 4))])
def test_an_example_that_the_model_fails_with_is_the_callers_fault(example):
    model = linears(3).train()
    with pytest.raises(CallerError, match=r"the model fails with the example: .*Error: "):
        binarize(model, example=example)


class Functional(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.one, self.two, self.three = (nn.Linear(4, 4) for _ in range(3))
        self.activation = activation

    def forward(self, x):
        return self.three(self.two(self.activation(self.one(x))))


def test_layers_without_negative_inputs_are_named():
    example = torch.randn(16, 4)

    assert reasons(Functional(functional.relu), example=example)["two"] == ("float", NO_NEGATIVE_INPUTS)
    assert reasons(Functional(functional.hardtanh), example=example)["two"] == ("binary", "the default")
    assert reasons(Functional(functional.relu), example=example, activations="real")["two"] == ("binary", "the default")


def test_observing_leaves_modes_and_hooks_as_they_were():
    model = Functional(functional.relu).train()
    model.two.eval()
    binary, _ = binarize(model, example=(torch.randn(2, 4),))

    assert [part.training for part in binary.modules()] == [True, True, False, True]
    assert isinstance(binary.two, nn.Linear)
    assert not any(part._forward_pre_hooks for part in binary.modules())


def test_layers_that_are_binary_already_stay_as_they_are():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), BinaryLinear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    binary, report = binarize(model, example=torch.randn(2, 4))

    assert [found.path for found in report] == ["0", "3", "4"]
    assert torch.equal(binary[2].weight, model[2].weight)
