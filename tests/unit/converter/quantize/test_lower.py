"""Programs rewritten with quantized operators."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.api import convert
from ferryman.converter.capture import Captured, capture
from ferryman.converter.quantize.calibration import read_calibration
from ferryman.converter.quantize.lower import lower_quantized
from ferryman.converter.quantize.recipe import Recipe, parse_recipe
from ferryman.converter.quiet import quiet
from ferryman.converter.source import make_source
from ferryman.converter.verify import make_references, with_program
from ferryman.runtime.contracts.errors import CallerError, ModelError
from tests.zoo import models


def captured_of(module: nn.Module, *inputs: torch.Tensor) -> Captured:
    return capture(make_source(module.eval(), inputs))


def operators(captured: Captured) -> list[str]:
    return [str(n.target) for n in captured.program.graph.nodes if n.op == "call_function"]


def sqnr_db(captured: Captured, lowered: Captured, *inputs: torch.Tensor) -> float:
    with torch.no_grad():
        reference = captured.source.module(*inputs)
        found = lowered.program.module()(*inputs)
    return float(20 * torch.log10(reference.norm() / (reference - found).norm()))


class Block(nn.Module):
    """Two convolutions, the input added, an activation; then another branch."""

    def __init__(self, activation: nn.Module, *, down: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 8, 1) if down else nn.Identity()
        self.last = nn.Conv2d(8, 4, 1)
        self.activation = activation

    def forward(self, x):
        x = self.activation(self.stem(x))
        return self.last(self.activation(self.two(self.activation(self.norm(self.one(x)))) + self.down(x)))


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.ReLU(inplace=True), nn.Hardtanh(-1, 2)])
@pytest.mark.parametrize("down", [False, True])
def test_int8_stays_int8_through_additions_and_activations(activation, down):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    captured = captured_of(Block(activation, down=down), x)
    lowered, forms = lower_quantized(captured, parse_recipe("int8"), [(x,)])
    assert set(operators(lowered)) == {"ferryman.quant_conv2d.default"}
    assert [form.note.rpartition("in, ")[2] for form in forms][-1] == "floats out"
    assert sum("adds" in form.note for form in forms) == 1
    assert sqnr_db(captured, lowered, x) > 25


class Mixed(nn.Module):
    """Values that something else reads as floats."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(16, 4, 3)

    def forward(self, x):
        y = functional.silu(self.one(x))
        z = self.two(y)
        return self.three(torch.cat((functional.max_pool2d(z, 2), functional.avg_pool2d(y, 2)), 1)), z


def test_floats_stay_floats_where_others_read_them():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 12, 12)
    captured = captured_of(Mixed(), x)
    lowered, _ = lower_quantized(captured, parse_recipe("int8"), [(x,)])
    for reference, found in zip(captured.source.module(x), lowered.program.module()(x), strict=True):
        assert 20 * torch.log10(reference.norm() / (reference - found).norm()) > 30


@pytest.mark.parametrize(
    ("factory", "form", "bar_db"),
    [
        ("resnet20", "int8", 40), ("resnet20", "int8-dynamic", 40), ("resnet20", "4bit", 30), ("resnet20", "2bit", 12),
        ("mobilenet_v2", "int8", 40), ("mobilenet_v2", "4bit", 30), ("decoder", "int8", 35), ("decoder", "4bit", 15),
    ],
)  # fmt: skip
def test_networks(factory, form, bar_db):
    module, inputs = getattr(models, factory)()[:2]
    with quiet():
        captured = capture(make_source(module, inputs))
        lowered, forms = lower_quantized(captured, parse_recipe(form), [captured.example])
    assert any(one.form != "fp32" for one in forms)
    references = make_references(captured, [captured.example])
    program = with_program(references, lowered).program
    for expected, found in zip(references.outputs[0], program[0], strict=True):
        assert 20 * np.log10(np.linalg.norm(expected) / np.linalg.norm(expected - found)) > bar_db


def test_what_a_recipe_says_of_a_layer_is_done():
    module, inputs = models.resnet20()
    captured = captured_of(module, *inputs)
    recipe = Recipe(bits=4, group=32, layers={"blocks.1.conv1": 2, "blocks.2.conv1": 32, "head": 8})
    _, forms = lower_quantized(captured, recipe, [captured.example])
    by_path = {form.path: form for form in forms}
    assert [by_path[path].form for path in ("blocks.1.conv1", "blocks.2.conv1", "head", "blocks.3.conv1")] == [
        "2bit", "fp32", "int8", "4bit",
    ]  # fmt: skip
    with pytest.raises(ModelError, match=r"no layer nowhere can be quantized; there are: stem.0, blocks.0.conv1"):
        lower_quantized(captured, Recipe(bits=4, group=32, layers={"nowhere": 4}), [captured.example])


def test_shared_weights_are_held_once():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inside = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x):
            return self.inside(torch.tanh(self.inside(torch.tanh(self.first(x)))))

    captured = captured_of(Twice(), torch.randn(1, 64))
    lowered, forms = lower_quantized(captured, parse_recipe("4bit"), [captured.example])
    assert len(forms) == 3
    weights = [b for b in lowered.program.state_dict.values() if b.dtype == torch.int8]
    assert len(weights) == 2


def test_a_model_of_nothing_to_quantize_is_refused():
    with pytest.raises(ModelError, match="no layer to quantize"):
        lower_quantized(captured_of(nn.ReLU(), torch.randn(2)), parse_recipe("int8"), [(torch.randn(2),)])


def test_odd_layers_stay_float_and_say_why():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv1d(3, 4, 3), nn.ConvTranspose2d(1, 2, 2)
            self.wide, self.fine = nn.Conv2d(2, 2, 1, padding=2), nn.Conv2d(2, 2, 1)

        def forward(self, x):
            return self.fine(self.wide(self.two(self.one(x)[:, None])))

    captured = captured_of(Odd(), torch.randn(1, 3, 12))
    _, forms = lower_quantized(captured, parse_recipe("int8"), [captured.example])
    assert {form.path: form.note for form in forms if form.form == "fp32"} == {
        "one": "only 2-D convolutions of a batch are taken",
        "two": "only 2-D convolutions of a batch are taken",
        "wide": "its padding is wider than its kernel reaches",
    }


def test_calibration_is_cut_to_the_program():
    captured = captured_of(nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8))
    loader = [(torch.randn(5, 3, 8, 8), torch.zeros(5)), (torch.randn(2, 3, 8, 8), torch.zeros(2))]
    assert [len(x) for (x,) in read_calibration(captured, loader)] == [2, 2, 2]
    assert read_calibration(captured, None) == [captured.example]


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ([], ModelError, "calibration has too few inputs: it gives none"),
        (torch.zeros(1, 3, 8, 8), CallerError, "must be an iterable of inputs, found Tensor"),
        ([torch.zeros(2, 3, 9, 9)], ModelError, "cannot be cut to the model's"),
        ([torch.zeros(2, 3, 8, 8).double()], ModelError, "must be like float32"),
        ([["no"]], CallerError, "must be tensors"),
        ([torch.zeros(1, 3, 8, 8)], ModelError, "too few inputs: only 1 rows, and the example has 2"),
        ([torch.zeros(2, 3, 8, 8), torch.full((2, 3, 8, 8), torch.nan)], ModelError, "input 1 holds NaN"),
        ((1 // 0 for _ in "x"), CallerError, "the loader of calibration failed: ZeroDivisionError"),
        (itertools.repeat(torch.zeros(0, 3, 8, 8)), ModelError, "too few inputs"),
        (7, CallerError, "found int"),
        ("model.pt2", CallerError, "no file model.pt2"),
    ],
)
def test_what_is_no_calibration_is_refused(given, error, said):
    captured = captured_of(nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8))
    with pytest.raises(error, match=said):
        read_calibration(captured, given)


@pytest.mark.parametrize("form", ["int8", "4bit", "4bit-asym", "2bit", "4bit-blocks"])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_a_tied_table_is_held_once(form, scale):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.inside = nn.Embedding(70, 36), nn.Linear(36, 36)

        def forward(self, ids):
            return torch.tanh(self.inside(self.words(ids))) @ self.words.weight.T * scale

    torch.manual_seed(0)
    ids = torch.randint(0, 70, (2, 5))
    captured = captured_of(Tied(), ids)
    lowered, _ = lower_quantized(captured, parse_recipe(form), [(ids,)])
    weights = [b for b in lowered.program.state_dict.values() if b.dtype == torch.int8 and b.shape[-1] == 4]
    assert len(weights) == 2
    assert sqnr_db(captured, lowered, ids) > (6 if form == "2bit" else 14)


def test_rows_are_joined_to_the_models_batch():
    captured = captured_of(nn.Conv2d(3, 4, 3), torch.randn(4, 3, 8, 8))
    rows = torch.arange(9.0)[:, None, None, None].expand(9, 3, 8, 8)
    found = read_calibration(captured, [rows[:1], rows[1:2], rows[2:7], rows[7:]])
    assert [one[:, 0, 0, 0].tolist() for (one,) in found] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_loaders_may_fill_one_tensor_again_and_again():
    def loader():
        buffer = torch.empty(2, 3, 8, 8)
        for value in range(4):
            yield buffer.fill_(value)

    captured = captured_of(nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8))
    assert [float(one[0, 0, 0, 0]) for (one,) in read_calibration(captured, loader())] == [0, 1, 2, 3]


@pytest.mark.parametrize("form", ["int8", "int8-blocks"])
@pytest.mark.parametrize("image", [False, True])
def test_a_layer_reads_its_input_as_it_was(form, image):
    class Changed(nn.Module):
        def __init__(self, *, inplace: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.inplace = inplace
            self.a, self.b = (nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)) if image else (nn.Linear(8, 8), nn.Linear(8, 8))

        def forward(self, x):
            h = self.a(x)
            y = self.b(h)
            h = h.add_(3) if self.inplace else h + 3
            return y * 2, functional.silu(h, inplace=self.inplace)

    torch.manual_seed(1)
    x = torch.randn(4, 8, 5, 5) if image else torch.randn(4, 8)
    answers = []
    for inplace in (False, True):
        lowered, _ = lower_quantized(captured_of(Changed(inplace=inplace), x), parse_recipe(form), [(x,)])
        answers.append(lowered.program.module()(x))
    for pure, changed in zip(*answers, strict=True):
        torch.testing.assert_close(changed, pure, rtol=0, atol=0)


@pytest.mark.parametrize("size", [1e-2, 1e-3, 1e-4])
def test_small_weights_keep_their_precision(size):
    torch.manual_seed(0)
    layer = nn.Linear(64, 64, bias=False)
    layer.weight.data = torch.randn(64, 64) * size
    x = torch.randn(32, 64)
    lowered, _ = lower_quantized(captured_of(layer, x), parse_recipe("int8"), [(x,)])
    assert sqnr_db(captured_of(layer, x), lowered, x) > 33


def test_images_are_flattened_whatever_order_they_lie_in(tmp_path):
    """A 4-bit convolution gives images with channels last, whose rows a view could not take."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 10)).eval()
    images = [(torch.randn(1, 3, 8, 8),) for _ in range(4)]
    made = convert(net, images[0], form="4bit", to=("tflite",), calibration=images, output=tmp_path, name="net")
    assert all(proof.sqnr_db > 15 for proof in made.manifest.variants[0].verified)
