"""Binary layers found and rewritten: what the program computes stays what eager computes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.capture import capture
from ferryman.converter.lower_binary import lower_binary
from ferryman.converter.source import make_source
from ferryman.runtime.contracts.errors import ModelError

OPS = torch.ops.ferryman


def sign(x):
    return torch.where(x >= 0, 1.0, -1.0)


class Conv(nn.Module):
    """A binary convolution with options for how its author may have written it."""

    def __init__(self, channels, out, kernel=3, *, activation=sign, scale="after", bias=False, **options):
        super().__init__()
        groups = options.get("groups", 1)
        self.weight = nn.Parameter(torch.randn(out, channels // groups, kernel, kernel))
        self.alpha = nn.Parameter(torch.rand(out) + 0.1)
        self.bias = nn.Parameter(torch.randn(out)) if bias else None
        self.activation, self.scale, self.options = activation, scale, {"padding": kernel // 2, **options}

    def forward(self, x):
        weight = sign(self.weight)
        if self.scale == "in the weights":
            weight = weight * self.alpha[:, None, None, None]
        y = functional.conv2d(self.activation(x), weight, self.bias, **self.options)
        return y * self.alpha[:, None, None] if self.scale == "after" else y


def trained(*parts):
    """The parts in order, eval mode, with batch norm statistics of something."""
    torch.manual_seed(0)
    model = nn.Sequential(*parts)
    shape = (4, 8, 9, 9)
    for _ in range(3):
        model(torch.randn(shape))
    return model.eval()


def lowered(model, x=None):
    """The rewritten program and its forms; checks that it computes what eager does, and that nothing is done twice."""
    torch.manual_seed(1)
    x = torch.randn(2, 8, 9, 9) if x is None else x
    before = copy.deepcopy(model.state_dict())
    captured, forms = lower_binary(capture(make_source(model, (x,))))
    with torch.no_grad():
        found, expected = captured.program.module()(x), model(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert len(operators(captured)) >= sum(form.form == "binary" for form in forms)
    assert len(stock_layers(captured)) == sum(form.form == "fp32" for form in forms)
    return captured, forms


def operators(captured):
    nodes = captured.program.graph.nodes
    return [node.target for node in nodes if node.op == "call_function" and "ferryman" in str(node.target)]


def stock_layers(captured):
    return [
        n for n in captured.program.graph.nodes if any(kind in str(n.target) for kind in ("aten.conv", "aten.linear"))
    ]


def stock_convs(captured):
    return [node for node in captured.program.graph.nodes if "aten.conv" in str(node.target)]


@pytest.mark.parametrize("activation", [sign, torch.sign, lambda x: torch.sign(x.clamp(-1, 1))])
@pytest.mark.parametrize("scale", ["after", "in the weights", "none"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_binary_convolution_is_one_operator(activation, scale, bias):
    # Batch norm first: where a model's own input is 0, torch.sign gives 0.
    captured, forms = lowered(trained(nn.BatchNorm2d(8), Conv(8, 20, activation=activation, scale=scale, bias=bias)))
    assert operators(captured) == [OPS.binary_conv2d.default]
    assert len(captured.program.graph_signature.user_outputs) == 1
    assert not stock_convs(captured)
    assumed = "" if activation is sign else "; assumes that its input is never exactly 0"
    assert [(form.path, form.form, form.note) for form in forms] == [("1", "binary", "signs in, floats out" + assumed)]
    assert all(value.dtype == torch.int32 or value.dim() <= 1 for value in captured.program.state_dict.values())


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2},
        {"padding": 0},
        {"padding": "same"},
        {"padding": "valid"},
        {"dilation": 2},
        {"groups": 2},
        {"groups": 8},
        {"kernel": 1},
        {"kernel": 4, "padding": "same"},
        {"padding": (2, 0)},
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_windows_of_every_kind(options, monkeypatch):
    monkeypatch.setattr(
        "ferryman.converter.lower_binary.choose_order", lambda *_: None
    )  # a busy machine may measure the tree faster
    captured, _ = lowered(trained(Conv(8, 16, **options)))
    assert operators(captured) == [OPS.binary_conv2d.default]


@pytest.mark.parametrize("value", [1.0, -1.0, 0.0])
def test_padding_between_the_sign_and_the_convolution_goes_into_the_operator(value):
    activation = lambda x: functional.pad(sign(x), (1, 2, 0, 1), value=value)  # noqa: E731  # a value
    captured, _ = lowered(trained(Conv(8, 16, activation=activation, padding=0)))
    (node,) = [node for node in captured.program.graph.nodes if node.target == OPS.binary_conv2d.default]
    assert node.args[7] == [0, 1, 1, 2]
    assert node.args[10] == value


def test_scales_offsets_and_batch_norms_are_folded():
    class Head(nn.Module):
        def forward(self, x):
            return (1.5 - x / torch.tensor(4.0)) * 3 + 1

    captured, _ = lowered(trained(Conv(8, 16, bias=True), nn.BatchNorm2d(16), Head()))
    assert [n.target for n in captured.program.graph.nodes if n.op == "call_function"] == [OPS.binary_conv2d.default]


def test_bits_stay_bits_between_binary_layers():
    model = trained(
        Conv(8, 40), nn.BatchNorm2d(40), nn.Hardtanh(), Conv(40, 24), nn.BatchNorm2d(24), nn.PReLU(), Conv(24, 8)
    )
    captured, forms = lowered(model)
    assert operators(captured) == [
        *(OPS.binary_conv2d_sign.default, OPS.binary_conv2d_sign.default, OPS.binary_conv2d.default)
    ]
    assert [form.note for form in forms] == [
        *("signs in, packed signs out", "packed signs in, packed signs out", "packed signs in, floats out")
    ]
    assert len([node for node in captured.program.graph.nodes if node.op == "call_function"]) == 3


def test_negative_batch_norm_weights_turn_the_sign_around_exactly():
    torch.manual_seed(2)
    norm = nn.BatchNorm2d(40)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    model = trained(Conv(8, 40), norm, Conv(40, 8, scale="none"))
    for seed in range(5):
        torch.manual_seed(seed)
        x = torch.randn(2, 8, 9, 9)
        captured, _ = lowered(model, x)
        with torch.no_grad():  # sums of signs: equal to the last bit, or a sign differs
            torch.testing.assert_close(captured.program.module()(x), model(x), rtol=0, atol=0)
    assert operators(captured)[0] == OPS.binary_conv2d_sign.default


def test_an_output_that_something_else_sees_stays_a_float():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = Conv(8, 8), Conv(8, 8)

        def forward(self, x):
            y = self.one(x)
            return y + self.two(y)

    captured, forms = lowered(trained(Residual()))
    assert operators(captured) == [OPS.binary_conv2d.default] * 2
    assert [form.path for form in forms] == ["0.one", "0.two"]


def test_two_readers_share_one_packed_output():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.left, self.right = Conv(8, 16), Conv(16, 8), Conv(16, 8, kernel=1)

        def forward(self, x):
            y = sign(self.one(x))
            return self.left(y) + self.right(y)

    captured, _ = lowered(trained(Fork()))
    assert operators(captured) == [OPS.binary_conv2d_sign.default, *[OPS.binary_conv2d.default] * 2]


def test_binary_weights_with_real_activations():
    captured, forms = lowered(trained(Conv(8, 16, activation=lambda x: x)))
    (node,) = [node for node in captured.program.graph.nodes if node.target == OPS.binary_conv2d.default]
    assert node.args[-1] is True
    assert forms[0].note == "reals in, floats out"


class Linear(nn.Module):
    def __init__(self, features, out):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, features))
        self.alpha = nn.Parameter(torch.rand(out) + 0.1)

    def forward(self, x):
        return functional.linear(sign(x), sign(self.weight)) * self.alpha


def test_linear_layers_and_bits_between_them():
    torch.manual_seed(0)
    model = nn.Sequential(Linear(70, 40), nn.Hardtanh(), Linear(40, 5)).eval()
    captured, _ = lowered(model, torch.randn(2, 3, 70))
    assert operators(captured) == [OPS.binary_linear_sign.default, OPS.binary_linear.default]


def test_a_sign_activation_that_meets_zeros_is_left_alone():
    """torch.sign gives 0 there, which no bit can hold."""
    model = trained(nn.ReLU(), Conv(8, 8, activation=torch.sign), Conv(8, 8))
    captured, forms = lowered(model)
    assert len(operators(captured)) == 1
    assert forms[0].form == "fp32"
    assert "its input is 0 in places" in forms[0].note


def test_a_model_without_binary_layers_is_told_what_one_is():
    model = trained(nn.Conv2d(8, 8, 3))
    with pytest.raises(
        ModelError, match=r"has no binary layer \(0: its weights have more than one magnitude.*BinaryConv2d"
    ):
        lowered(model)


def test_what_is_not_binary_stays_beside_what_is():
    model = trained(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), Conv(16, 16), nn.ReLU(), nn.Conv2d(16, 4, 1))
    captured, forms = lowered(model)
    assert [form.form for form in forms] == ["fp32", "binary", "fp32"]
    assert len(stock_convs(captured)) == 2


def test_dynamic_batches():
    model = trained(nn.Conv2d(8, 16, 3), Conv(16, 16), nn.BatchNorm2d(16), Conv(16, 4))
    shapes = ({0: torch.export.Dim("batch", min=1, max=8)},)
    captured, _ = lower_binary(capture(make_source(model, (torch.randn(3, 8, 9, 9),), dynamic_shapes=shapes)))
    x = torch.randn(5, 8, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(captured.program.module()(x), model(x), rtol=1e-5, atol=1e-5)


def test_the_same_layer_called_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = Conv(8, 8)

        def forward(self, x):
            return self.conv(x) + self.conv(x.flip(3))

    captured, forms = lowered(trained(Twice()))
    assert operators(captured) == [OPS.binary_conv2d.default] * 2
    assert len(forms) == 2


@pytest.mark.parametrize("bias", [False, True])
def test_any_two_values_a_channel_will_do(bias):
    """Then the layer is two binary ones: of the values' difference, and of all ones."""

    class TwoValues(Conv):
        def forward(self, x):
            weight = torch.where(self.weight >= 0, self.alpha[:, None, None, None], torch.tensor(-0.25))
            return functional.conv2d(sign(x), weight, self.bias, padding=1)

    captured, forms = lowered(trained(TwoValues(8, 12, bias=bias), nn.BatchNorm2d(12), Conv(12, 4)))
    assert operators(captured).count(OPS.binary_conv2d.default) == 3
    assert [form.form for form in forms] == ["binary"] * 3


def test_any_two_values_a_channel_in_a_linear_layer():
    class TwoValues(Linear):
        def forward(self, x):
            return functional.linear(sign(x), (self.weight >= 0) * self.alpha[:, None])

    torch.manual_seed(0)
    captured, _ = lowered(nn.Sequential(TwoValues(70, 12)).eval(), torch.randn(2, 3, 70))
    assert operators(captured) == [OPS.binary_linear.default] * 2


def test_a_residual_between_two_layers_is_computed_once():
    """The second's sign is that of the first's dot products as well as of their multiple: it must take what is left."""

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = Conv(8, 8), Conv(8, 8)

        def forward(self, x):
            y = self.one(x)
            return self.two(y) + y

    captured, _ = lowered(trained(Residual()))
    assert operators(captured) == [OPS.binary_conv2d.default] * 2
    assert not [n for n in captured.program.graph.nodes if n.target == torch.ops.aten.mul.Tensor]


@pytest.mark.parametrize("leading", [(6,), (3, 6), (2, 4, 6), (2, 2, 4, 6)])
def test_linear_layers_of_any_rank_have_their_channels_last(leading):
    torch.manual_seed(0)
    norm = nn.LayerNorm(16)
    model = nn.Sequential(Linear(32, 24), nn.Hardtanh(), Linear(24, 16), norm, Linear(16, 4)).eval()
    captured, _ = lowered(model, torch.randn(*leading, 32))
    assert operators(captured) == [
        *(OPS.binary_linear_sign.default, OPS.binary_linear.default, OPS.binary_linear.default)
    ]


@pytest.mark.parametrize("operation", [torch.mul, torch.add])
def test_what_is_not_per_channel_is_not_folded(operation):
    class Rows(nn.Module):
        def forward(self, x):
            return operation(x, torch.linspace(-1, 1, 4)[:, None, None])

    torch.manual_seed(0)
    captured, _ = lowered(nn.Sequential(Linear(32, 4), Rows(), Linear(4, 3)).eval(), torch.randn(2, 4, 4, 32))
    assert operators(captured) == [OPS.binary_linear.default] * 2


def test_a_pad_that_something_else_reads_keeps_floats():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = Conv(8, 8), Conv(8, 8, activation=lambda x: x, padding=0)

        def forward(self, x):
            padded = functional.pad(sign(self.one(x)), (1, 1, 1, 1), value=1.0)
            return self.two(padded).mean() + padded.mean()

    captured, _ = lowered(trained(Shared()))
    assert operators(captured) == [OPS.binary_conv2d.default] * 2


def test_batch_statistics_are_no_function_of_one_channel():
    captured, _ = lowered(trained(Conv(8, 32), nn.BatchNorm2d(32, track_running_stats=False), Conv(32, 4)))
    assert operators(captured) == [OPS.binary_conv2d.default] * 2


def test_signs_with_other_zeros_or_other_numbers_are_not_assumed():
    torch.manual_seed(0)
    on_input = nn.Sequential(Conv(8, 8, activation=torch.sign), Conv(8, 8)).eval()
    _, forms = lowered(on_input)
    assert forms[0].note == "its input is the model's, and may be 0, where its sign activation gives 0 and not 1"
    copied = trained(nn.Conv2d(8, 8, 3), Conv(8, 8, activation=lambda x: torch.copysign(torch.ones_like(x), x)))
    _, forms = lowered(copied)
    assert forms[1].note == "signs in, floats out; assumes that its input is never exactly 0"


@pytest.mark.parametrize("shape", [(8, 9, 9), (1, 8, 9, 9)])
def test_convolutions_of_other_kinds_say_why_they_are_left(shape):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(8, 4, 3), Linear(7, 3)

        def forward(self, x):
            return self.linear(self.conv(x))

    torch.manual_seed(0)
    _, forms = lowered(Both().eval(), torch.randn(shape))
    expected = "only 2-D ones of a batch are taken" if len(shape) == 3 else "its weights have more than one magnitude"
    assert forms[0].note.startswith(expected)


def test_what_turns_the_numbers_into_others_is_not_folded():
    class Double(nn.Module):
        def forward(self, x):
            return x * torch.full((8, 1, 1), 0.5, dtype=torch.float64)

    captured, _ = lowered(trained(Conv(8, 8), Double()))
    assert captured.program.graph_signature.user_outputs
    (answer,) = captured.program.module()(torch.randn(2, 8, 9, 9))[None]
    assert answer.dtype == torch.float64


def test_weights_of_a_straight_through_estimator_are_binary_though_it_rounds():
    class StraightThrough(Conv):
        def forward(self, x):
            alpha = self.weight.abs().mean((1, 2, 3), keepdim=True)
            hard, soft = alpha * torch.sign(self.weight), self.weight.clamp(-1, 1)
            return functional.conv2d(sign(x), (hard - soft).detach() + soft, padding=1)

    captured, _ = lowered(trained(nn.BatchNorm2d(8), StraightThrough(8, 16)))
    assert operators(captured) == [OPS.binary_conv2d.default]


@pytest.mark.parametrize("options", [{"kernel": 1, "padding": 1}, {"kernel": 3, "padding": 3}])
def test_padding_beyond_the_kernels_reach_stays_in_float(options):
    _, forms = lowered(trained(Conv(8, 16, **options), Conv(16, 4)))
    assert forms[0].note == "its padding is wider than its kernel reaches"
