from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from ferryman.converter.capture import capture
from ferryman.converter.compress.api import compress
from ferryman.converter.compress.quantized import settle
from ferryman.converter.quant_bits import unpack_groups, unpack_weights
from ferryman.converter.quantize.layers import Layer
from ferryman.converter.quantize.lower import lower_quantized, plan_layers
from ferryman.converter.quantize.recipe import Recipe, parse_recipe
from ferryman.converter.quantize.rounding import grid_of
from ferryman.converter.quantize.weights import Grid, spread
from ferryman.converter.source import make_source
from ferryman.runtime.contracts.errors import CallerError, ModelError


def image_net():
    """Batch norms, one of negative scales; a depthwise convolution; linear layers."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, groups=16), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3)),
    )
    with torch.no_grad():
        net[4].weight.neg_()
    return net


def images():
    torch.manual_seed(1)
    return [(torch.randn(16, 1, 8, 8), torch.randint(0, 3, (16,))) for _ in range(3)]


def rounded_again(model, form, x):
    """Module path -> (the weights that converting finds, those it was given), with what follows folded into both."""
    recipe = parse_recipe(form)
    captured = capture(make_source(model, (x,)))
    found = plan_layers(captured, captured.program.module(check_guards=False), recipe)
    pairs = {}
    for layer in found.values():
        assert isinstance(layer, Layer)
        rows = layer.weight.flatten(1)
        pairs[layer.path] = grid_of(layer, layer.bits, recipe).round(rows).values(), rows
    return pairs


@pytest.mark.parametrize("form", ["2bit", "4bit", "int8", "4bit-g64", "2bit-channel", "4bit-asym", "int8-asym"])
def test_what_converting_rounds_is_rounded_already(form):
    torch.manual_seed(0)
    made = compress(image_net(), form, loader=images(), epochs=2)
    pairs = rounded_again(made.model, form, images()[0][0])
    assert set(pairs) == {"0", "3", "6", "9", "11"}
    for path, (found, given) in pairs.items():
        if path in ("0", "3"):  # multiplied by their batch norm's factor, which float32 rounds
            torch.testing.assert_close(found, given, rtol=1e-6, atol=1e-9)
        else:
            assert torch.equal(found, given), path


def held_weights(program):
    """The float weights that each operator of a lowered program stands for, [out, inputs], in order."""
    module = program.program.module()
    for node in module.graph.nodes:
        name = str(node.target)
        if not name.startswith("ferryman.quant_"):
            continue
        held = [getattr(module, str(one.target)) for one in node.args[1:3]]
        if "conv" in name:
            channels, kernel, groups, bits = node.args[5], node.args[6], node.args[10], node.args[12]
            shape = (len(held[1]), channels // groups, *kernel)
            integers = unpack_weights(held[0].view(torch.uint8).numpy(), shape, groups, bits)
            yield torch.from_numpy(integers).flatten(1) * held[1][:, None]
        else:
            scales = torch.from_numpy(unpack_groups(held[1].numpy(), len(module.get_buffer(str(node.args[4].target)))))
            inputs, group = node.args[0].meta["val"].shape[-1], node.args[6]
            integers = unpack_weights(held[0].view(torch.uint8).numpy(), (len(scales), inputs), 1, node.args[5])
            yield torch.from_numpy(integers) * spread(scales.float(), group, inputs)


@pytest.mark.parametrize("form", ["2bit", "4bit", "int8", "4bit-gptq"])
def test_the_lowered_program_holds_the_trained_weights_to_the_bit(form):
    torch.manual_seed(0)
    dense = nn.Sequential(
        *(nn.Conv2d(1, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten()),
        *(nn.Linear(32, 40), nn.Tanh(), nn.Linear(40, 3)),
    )
    made = compress(dense, form, loader=images(), epochs=2)
    batches = [(x,) for x, _ in images()]
    program, _ = lower_quantized(capture(make_source(made.model, batches[0])), parse_recipe(form), batches)
    weights = [part.weight for part in made.model if hasattr(part, "weight")]
    found = list(held_weights(program))
    assert len(found) == len(weights) == 5
    for one, weight in zip(found, weights, strict=True):
        assert torch.equal(one, weight.flatten(1))
        assert not torch.equal(one, torch.zeros_like(one))


def test_its_decisions_are_those_of_converting():
    torch.manual_seed(0)
    made = compress(image_net(), "2bit", loader=images(), epochs=1)
    assert made.form == "2bit"
    assert [(one.path, one.kind, one.decision) for one in made.decisions] == [
        ("0", "Conv2d", "int8"),
        ("3", "Conv2d", "2bit"),
        ("6", "Conv2d", "4bit"),
        ("9", "Linear", "2bit"),
        ("11", "Linear", "4bit"),
    ]
    x = images()[0][0]
    _, forms = lower_quantized(capture(make_source(made.model, (x,))), parse_recipe("2bit"), [(x,)])
    assert [(form.path, form.form) for form in forms] == [(one.path, one.decision) for one in made.decisions]


def test_it_gives_a_plain_model_back_and_leaves_the_dense_one_as_it_was():
    dense = image_net().train()
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    told = []
    made = compress(dense, "4bit", loader=images(), epochs=2, progress=lambda *step: told.append(step[:2]))
    torch.testing.assert_close(dense.state_dict(), before, rtol=0, atol=0)
    assert all(part.training for part in dense.modules())
    assert not any(part.training or parametrize.is_parametrized(part) for part in made.model.modules())
    assert {type(part) for part in made.model.modules()} == {type(part) for part in dense.modules()}
    assert made.model.state_dict().keys() == before.keys()
    assert told == [(1, 2), (2, 2)]
    assert len(made.losses) == 2


def test_the_lowered_program_answers_as_the_trained_model():
    torch.manual_seed(0)
    made = compress(image_net(), "2bit", loader=images(), epochs=2)
    (x, _), *_ = images()
    program, _ = lower_quantized(capture(make_source(made.model, (x,))), parse_recipe("2bit"), [(x,)])
    with torch.no_grad():
        wanted, found = made.model(x), program.program.module()(x)
    assert 10 * torch.log10(wanted.square().sum() / (wanted - found).square().sum()) > 30


class Tied(nn.Module):
    """A table that is read as a table and as the matrix of the head, and a layer called twice."""

    def __init__(self, *, parameter: bool):
        super().__init__()
        self.table, self.middle = nn.Embedding(10, 32), nn.Linear(32, 32)
        self.head = nn.Linear(32, 10, bias=False) if parameter else None
        if self.head is not None:
            self.head.weight = self.table.weight

    def forward(self, ids):
        x = self.middle(torch.tanh(self.middle(self.table(ids).mean(1))))
        return x @ self.table.weight.T if self.head is None else self.head(x)


@pytest.mark.parametrize("parameter", [False, True])
def test_tied_weights_stay_tied(parameter):
    torch.manual_seed(0)
    ids = torch.randint(0, 10, (16, 4))
    made = compress(Tied(parameter=parameter), "2bit", loader=[(ids, ids[:, 0])], epochs=2)
    model = made.model
    assert [one.decision for one in made.decisions] == ["4bit", "2bit", "2bit", "4bit"]
    assert {one.reason for one in made.decisions} == {"the form's"}
    grid = Grid(bits=4, group=32, asymmetric=False, half=True)
    assert torch.equal(grid.round(model.table.weight).values(), model.table.weight)
    assert model.head is None or model.head.weight is model.table.weight
    assert len(list(model.parameters())) == 3


def test_what_it_cannot_train_is_said():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.same = nn.Linear(8, 8, bias=False)
            self.normed = parametrizations.weight_norm(nn.Linear(8, 8))
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.normed(torch.tanh(self.same(x)) @ self.same.weight))

    torch.manual_seed(0)
    x = torch.randn(8, 8)
    made = compress(Net(), "4bit", loader=[(x, torch.zeros(8).long())], epochs=1)
    reasons = [(one.decision, one.reason) for one in made.decisions]
    assert reasons == [
        ("int8", "not trained through rounding: its weights are read in different ways"),
        ("int8", "not trained through rounding: its weights are read in different ways"),
        ("4bit", "not trained through rounding: its weights are computed from others"),
        ("4bit", "the form's"),
    ]
    assert parametrize.is_parametrized(made.model.normed)


def test_layers_that_a_recipe_leaves_in_float_stay_so():
    recipe = Recipe(bits=2, group=32, layers={"9": 32, "11": 8})
    made = compress(image_net(), recipe, loader=images(), epochs=1)
    assert [one.decision for one in made.decisions] == ["int8", "2bit", "4bit", "float", "int8"]
    assert len(made.model[9].weight.unique()) > 1000


def test_frozen_weights_are_rounded_and_not_trained():
    dense = image_net()
    dense[9].weight.requires_grad_(requires_grad=False)
    made = compress(dense, "2bit", loader=images(), epochs=2)
    grid = Grid(bits=2, group=32, asymmetric=False, half=True)
    assert torch.equal(made.model[9].weight, settle(dense[9].weight, grid))
    assert not made.model[9].weight.requires_grad


def test_pruned_channels_do_not_break_training():
    dense = image_net()
    with torch.no_grad():
        dense[3].weight[2] = 0
        dense[9].weight[:, :32] = 0
    made = compress(dense, "2bit", loader=images(), epochs=2)
    assert all(value.isfinite().all() for value in made.model.state_dict().values())


def test_training_that_fails_leaves_no_trace_in_the_dense_model():
    dense = image_net()
    with pytest.raises(CallerError, match="batch 2 is int"):
        compress(dense, "2bit", loader=[images()[0], 7], epochs=1)
    assert not any(parametrize.is_parametrized(part) for part in dense.modules())


@pytest.mark.parametrize(
    ("form", "arguments", "match"),
    [
        ("2bit", {}, "needs a loader"),
        ("2bit-equalize", {"loader": images()}, "leave out equalize"),
        ("3bit", {"loader": images()}, "not known"),
        ("2bit-nope", {"loader": images()}, "not known"),
        ("2bit", {"loader": iter(images())}, "only once"),
        ("2bit", {"loader": []}, "gives no"),
        ("2bit", {"loader": images(), "keep": ["0"]}, "are for form binary"),
        ("2bit", {"loader": images(), "epochs": 0}, "epochs"),
        ("2bit", {"loader": images(), "lr": 0}, "lr"),
    ],
)
def test_what_it_cannot_do_is_the_callers_fault(form, arguments, match):
    with pytest.raises(CallerError, match=match):
        compress(image_net(), form, **arguments)


def test_a_model_without_layers_is_refused():
    with pytest.raises(ModelError, match="no layer to quantize"):
        compress(nn.Sequential(nn.BatchNorm1d(4)), "int8", loader=[(torch.randn(4, 4), torch.zeros(4).long())])
