from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from ferryman.converter.compress.binary_modules import LATENT_LIMIT, BinaryConv2d, BinaryLinear
from ferryman.converter.compress.estimators import sign
from ferryman.runtime.contracts.errors import CallerError
from tests.zoo.binary import bipft_encoder, resnet18_binary

aten = torch.ops.aten
PLAIN = {
    aten.ge.Scalar,
    aten.where.Scalar,
    aten.conv2d.default,
    aten.linear.default,
    aten.mul.Tensor,
    aten.add.Tensor,
    aten.constant_pad_nd.default,
    aten.unsqueeze.default,  # of scale and bias, over height and width
}


def exported_ops(module, *inputs):
    program = torch.export.export(module.eval(), inputs, strict=False)
    assert torch.allclose(program.module()(*inputs), module(*inputs))
    return [node.target for node in program.graph.nodes if node.op == "call_function"]


@st.composite
def convolutions(draw):
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    stride = draw(st.integers(1, 2))
    same = stride == 1 and draw(st.booleans())
    layer = BinaryConv2d(
        4 * draw(st.integers(1, 3)),
        4 * draw(st.integers(1, 3)),
        (draw(st.integers(1, 4)), draw(st.integers(1, 3))),
        stride,
        "same" if same else (draw(st.integers(0, 2)), draw(st.integers(0, 2))),
        draw(st.integers(1, 2)),
        groups,
        bias=draw(st.booleans()),
        activations=draw(st.sampled_from(["sign", "real"])),
        pad_value=draw(st.sampled_from([-1, 0, 1])),
    )
    return layer.train(draw(st.booleans())), draw(st.integers(0, 1000))


@given(convolutions())
@settings(max_examples=60, deadline=None)
def test_a_convolution_is_that_of_padded_signs_times_scale(case):
    layer, seed = case
    x = torch.randn(2, layer.in_channels, 9, 8, generator=torch.Generator().manual_seed(seed))
    signs = (x >= 0) * 2.0 - 1 if layer.activations == "sign" else x
    padded = functional.pad(signs, layer.padding, value=layer.pad_value)
    weights = (layer.weight >= 0) * 2.0 - 1
    dots = functional.conv2d(padded.double(), weights.double(), None, layer.stride, 0, layer.dilation, layer.groups)
    expected = dots * layer.scale[:, None, None]
    if layer.bias is not None:
        expected = expected + layer.bias[:, None, None]

    assert torch.allclose(layer(x).double(), expected, atol=1e-4)
    if layer.activations == "sign":
        with torch.no_grad():
            layer.scale.fill_(1)
        bias = 0 if layer.bias is None else layer.bias[:, None, None]
        assert torch.equal(layer(x), dots.float() + bias)  # integers: exact


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # torch's, of a copy that this costs it
@pytest.mark.parametrize("kernel", [1, 2, 3, (4, 5)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_padding_lies_where_torch_puts_it(kernel, dilation):
    layer = BinaryConv2d(3, 4, kernel, padding="same", dilation=dilation).eval()
    x = torch.randn(1, 3, 11, 12)
    expected = functional.conv2d(sign(x), sign(layer.weight), padding="same", dilation=dilation)

    assert torch.equal(layer(x), expected * layer.scale[:, None, None])


def test_training_gives_the_same_numbers_and_gradients_for_everything():
    for layer, x in (
        (BinaryConv2d(3, 4, 3, padding=1, bias=True), torch.randn(2, 3, 6, 6)),
        (BinaryLinear(7, 5, bias=True, rank=2), torch.randn(2, 3, 7)),
    ):
        x.requires_grad_()
        y = layer.train()(x)
        y.square().sum().backward()

        assert torch.equal(y, layer.eval()(x))
        assert x.grad.any()
        assert all(parameter.grad.any() for parameter in layer.parameters())


def test_eval_mode_gives_no_gradient_through_signs():
    torch.manual_seed(0)  # dot products of some inputs cancel
    layer = BinaryLinear(7, 5).eval()
    layer(torch.randn(2, 7)).sum().backward()

    assert layer.weight.grad is None or not layer.weight.grad.any()
    assert layer.scale.grad.any()


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (BinaryConv2d(3, 4, 3, padding=1), (1, 3, 6, 6), PLAIN - {aten.linear.default, aten.constant_pad_nd.default}),
        (BinaryConv2d(3, 4, 3, padding=1, bias=True, pad_value=-1), (1, 3, 6, 6), PLAIN - {aten.linear.default}),
        (BinaryConv2d(3, 4, 2, padding="same", bias=True), (1, 3, 6, 6), PLAIN - {aten.linear.default}),
        (
            BinaryLinear(7, 5, bias=True, rank=2),
            (2, 7),
            {aten.ge.Scalar, aten.where.Scalar, aten.linear.default, aten.mul.Tensor, aten.add.Tensor},
        ),
    ],
)
def test_eval_graphs_are_plain_operations(layer, shape, expected):
    found = set(exported_ops(layer, torch.randn(shape)))

    assert found <= expected
    assert found >= expected - {aten.add.Tensor}


def test_real_activations_are_not_binarized():
    found = exported_ops(BinaryConv2d(3, 4, 3, activations="real"), torch.randn(1, 3, 6, 6))

    assert found.count(aten.where.Scalar) == 1  # the weights


@pytest.mark.parametrize("model", [lambda: resnet18_binary(width=8), bipft_encoder])
def test_the_zoos_binary_models_export(model):
    module, inputs = model()
    found = exported_ops(module, *inputs)
    layers = sum(isinstance(part, (BinaryConv2d, BinaryLinear)) for part in module.modules())

    assert layers in (16, 12)
    assert found.count(aten.where.Scalar) == 2 * layers
    assert all(op.namespace == "aten" for op in found)


def test_a_zoo_model_takes_larger_images():
    module, inputs = resnet18_binary(width=8, size=64, classes=7, pad_value=1)

    assert inputs[0].shape == (1, 3, 64, 64)
    assert module(*inputs).shape == (1, 7)


def test_the_scale_begins_as_the_mean_size_of_a_channels_weights():
    layer = BinaryConv2d(3, 4, 3)

    assert torch.allclose(layer.scale, layer.weight.abs().mean((1, 2, 3)))


def test_latent_weights_and_scales_go_back_to_where_they_may_be():
    layer = BinaryLinear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[9.0, -9.0], [0.5, -0.5]]))
        layer.scale.copy_(torch.tensor([-1.0, 2.0]))
    layer.clamp_latent_()

    assert layer.weight.tolist() == [[LATENT_LIMIT, -LATENT_LIMIT], [0.5, -0.5]]
    assert layer.scale[0] > 0
    assert layer.scale[1] == 2


def test_full_rank_with_real_activations_is_the_dense_layer():
    dense = nn.Linear(9, 6)
    layer = BinaryLinear(9, 6, bias=True, activations="real", rank=6).eval()
    layer.load_dense_(dense.weight, dense.bias)
    x = torch.randn(4, 9)

    assert torch.allclose(layer(x), dense(x), atol=1e-5)


def test_rank_brings_the_weights_closer_to_the_dense_ones():
    torch.manual_seed(0)
    dense = nn.Linear(32, 24)
    errors = []
    for rank in (0, 1, 4, 8, 16, 24):
        layer = BinaryLinear(32, 24, bias=True, rank=rank)
        layer.load_dense_(dense.weight, dense.bias)
        made = layer.scale[:, None] * sign(layer.weight)
        if rank:
            made = made + layer.low_rank_out @ layer.low_rank_in
        errors.append((made - dense.weight).square().sum().item())

    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BinaryConv2d(3, 4, 3, pad_value=2), "pad_value is -1, 0 or 1, found 2"),
        (lambda: BinaryConv2d(3, 4, 3, groups=2), "3 and 4 channels do not divide into 2 groups"),
        (lambda: BinaryConv2d(3, 4, 3, padding="valid"), "padding is a number, a pair or 'same', found 'valid'"),
        (lambda: BinaryConv2d(3, 4, 3, 2, "same"), "padding='same' needs stride 1"),
        (lambda: BinaryConv2d(3, 4, 3, activations="ternary"), "activations are 'sign' or 'real', found 'ternary'"),
        (lambda: BinaryLinear(3, 4, rank=4), "rank is 0 to 3 for this layer, found 4"),
        (lambda: BinaryLinear(3, 4, estimator="none"), "no estimator 'none'; there are: ste, reste"),
    ],
)
def test_arguments_out_of_range_are_the_callers_fault(make, message):
    with pytest.raises(CallerError, match=message):
        make()


def test_it_describes_itself():
    assert "padding=(1, 1, 1, 1), groups=1, activations=sign" in repr(BinaryConv2d(3, 4, 3, padding=1))
    assert "BinaryLinear(3, 4, activations=real, rank=2)" in repr(BinaryLinear(3, 4, activations="real", rank=2))
