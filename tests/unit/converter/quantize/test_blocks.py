"""Transformers in blocks: what is taken, what hands blocks on, and what stays."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.capture import Captured, capture
from ferryman.converter.quantize.bit_operations import bit_operations
from ferryman.converter.quantize.lower import lower_quantized
from ferryman.converter.quantize.recipe import Recipe, parse_recipe
from ferryman.converter.source import make_source
from ferryman.runtime.contracts.errors import CallerError

OPS = torch.ops.ferryman


def lowered(module: nn.Module, *inputs: torch.Tensor, form: str = "int8-blocks", dynamic=None):
    captured = capture(make_source(module.eval(), inputs, dynamic_shapes=dynamic))
    program, forms = lower_quantized(captured, parse_recipe(form), [inputs])
    return captured, program, forms


def sqnr_db(captured: Captured, program: Captured, *inputs: torch.Tensor) -> float:
    with torch.no_grad():
        wanted, found = captured.source.module(*inputs), program.program.module()(*inputs)
    return float(20 * torch.log10(wanted.norm() / (wanted - found).norm()))


def counted(program: Captured) -> Counter:
    names = [str(node.target) for node in program.program.graph.nodes if node.op == "call_function"]
    return Counter(name.split(".")[1] for name in names if name.startswith("ferryman"))


class Attention(nn.Module):
    """Two heads, by torch's own operator or spelled out."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.project = nn.Linear(64, 192)
        self.out = nn.Linear(64, 64)
        self.drop = nn.Dropout(0.5)

    def forward(self, x, mask=None):
        q, k, v = (one.unflatten(-1, (2, 32)).transpose(1, 2) for one in self.project(x).chunk(3, -1))
        if self.how == "spelled out":
            made = self.drop((q @ k.transpose(2, 3) / 32**0.5).softmax(-1)) @ v
        elif self.how == "causal":
            made = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        elif self.how == "scaled":
            made = functional.scaled_dot_product_attention(q, k, v, None, 0.0, False, scale=0.3)
        else:
            made = functional.scaled_dot_product_attention(q, k, v, mask)
        return self.out(made.transpose(1, 2).flatten(2))


def masks(kind: str) -> tuple[torch.Tensor, ...]:
    visible = torch.rand(2, 1, 12, 12) < 0.7  # of most
    visible[..., 0] = True
    return {"bool": (visible,), "float": (torch.where(visible, 0.0, -1e9),)}.get(kind, ())


@pytest.mark.parametrize("how", ["spelled out", "causal", "scaled", "plain", "bool", "float"])
def test_attention_is_two_products_and_a_softmax(how):
    torch.manual_seed(0)
    x = torch.randn(2, 12, 64)
    inputs = (x, *masks(how))
    captured, program, forms = lowered(Attention(how), *inputs)
    assert counted(program) == {"quant_linear": 2, "quant_matmul": 2, "quant_function": 1}
    assert sqnr_db(captured, program, *inputs) > 36
    (softmax,) = [one for one in forms if "softmax" in one.note]
    assert "blocks of 32 out" in softmax.note


def test_what_is_hidden_has_a_part_in_scales_alone():
    """Of values along the sequence 32 share a scale, whoever sees them."""
    torch.manual_seed(0)
    x = torch.randn(1, 12, 64)
    _, program, _ = lowered(Attention("causal"), x)
    other = x.clone()
    other[:, 6:] = torch.randn(6, 64)
    module = program.program.module()
    torch.testing.assert_close(module(x)[:, :6], module(other)[:, :6], rtol=0, atol=0.01)
    assert (module(x)[:, 6:] - module(other)[:, 6:]).abs().max() > 0.3


def test_grouped_heads_stay_in_float_and_are_right():
    class Grouped(nn.Module):
        def __init__(self):
            super().__init__()
            self.project = nn.Linear(32, 96)

        def forward(self, x):
            heads = self.project(x).unflatten(-1, (6, 16)).transpose(1, 2)
            return functional.scaled_dot_product_attention(heads[:, :4], heads[:, 4:], heads[:, 4:], enable_gqa=True)

    captured, program, _ = lowered(Grouped(), torch.randn(2, 12, 32))
    assert counted(program) == {"quant_linear": 1}
    assert sqnr_db(captured, program, torch.randn(2, 12, 32)) > 30


class Feed(nn.Module):
    """A layer norm that the residual reads as well, and an activation between layers."""

    def __init__(self, activation: nn.Module, norm: nn.Module, channels: int = 40) -> None:
        super().__init__()
        self.norm, self.activation = norm, activation
        self.up, self.down = nn.Linear(channels, 70), nn.Linear(70, channels)

    def forward(self, x):
        y = self.norm(x)
        return y + self.down(self.activation(self.up(y)))


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm(40), nn.LayerNorm(40, elementwise_affine=False), nn.LayerNorm(40, bias=False)]
)
@pytest.mark.parametrize("activation", [nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.SiLU(inplace=True)])
def test_blocks_are_handed_on_where_rows_alone_are_read(activation, norm):
    torch.manual_seed(0)
    x = torch.randn(3, 5, 40)
    captured, program, forms = lowered(Feed(activation, norm), x)
    assert counted(program) == {"quant_linear": 2, "quant_function": 2}
    assert sqnr_db(captured, program, x) > 36
    notes = {one.path: (one.form, one.note) for one in forms}
    assert notes["norm"] == ("fp32", "layer norm by polynomials, floats out")
    assert notes["activation"][0] == "int8"
    assert "blocks of 32 out" in notes["activation"][1]


def test_an_output_is_never_in_blocks():
    captured, program, _ = lowered(nn.Sequential(nn.Linear(40, 40), nn.GELU()), torch.randn(3, 40))
    assert program.program.module()(torch.randn(3, 40)).dtype == torch.float32
    assert sqnr_db(captured, program, torch.randn(3, 40)) > 36


def test_other_functions_stay():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(40, 40)
            self.norm = nn.LayerNorm((5, 40))

        def forward(self, x):
            x = self.norm(self.layer(x))
            return (x @ x[:1].transpose(1, 2)).softmax(1)  # of several matrices with one, and of columns

    captured, program, _ = lowered(Odd(), torch.randn(3, 5, 40))
    assert counted(program) == {"quant_linear": 1}
    assert sqnr_db(captured, program, torch.randn(3, 5, 40)) > 25


def test_the_number_of_rows_may_change():
    length = torch.export.Dim("length", min=2, max=64)
    captured, program, _ = lowered(Attention("plain"), torch.randn(2, 12, 64), dynamic={"x": {1: length}})
    assert counted(program)["quant_matmul"] == 2
    for size in (2, 31, 64):
        assert sqnr_db(captured, program, torch.randn(2, size, 64)) > 36


@pytest.mark.parametrize("form", ["4bit-blocks", "4bit-blocks-asym", "mixed-5b-blocks", "2bit-blocks-gptq"])
def test_weights_may_have_fewer_bits(form):
    torch.manual_seed(0)
    x = torch.randn(2, 12, 64)
    captured, program, _ = lowered(Attention("causal"), x, form=form)
    assert counted(program) == {"quant_linear": 2, "quant_matmul": 2, "quant_function": 1}
    assert sqnr_db(captured, program, x) > (8 if form.startswith("2") else 15)


def test_outliers_are_kept_to_their_block():
    torch.manual_seed(0)
    x = torch.randn(64, 128)
    x[:, 3] *= 200
    layer = nn.Linear(128, 64)
    layer.weight.data[:, 3] *= 0.01
    found = {form: sqnr_db(*lowered(layer, x, form=form)[:2], x) for form in ("int8", "int8-blocks")}
    assert found["int8-blocks"] > found["int8"] + 4


def test_bit_operations_are_those_of_layers():
    captured, _, forms = lowered(Attention("plain"), torch.randn(1, 12, 64))
    assert bit_operations(captured, forms) == 64 * (12 * 64 * 192 + 12 * 64 * 64)


def test_blocks_go_with_groups_of_32():
    assert parse_recipe("int8-blocks").group == 32
    assert parse_recipe("4bit-blocks").name == "4bit-blocks"
    with pytest.raises(CallerError, match="blocks of activations go with groups of 32"):
        parse_recipe("4bit-blocks-g64")
    from ferryman.converter.forms import find_form

    with pytest.raises(CallerError, match="groups of 32"):
        find_form(Recipe(bits=8, group=0, blocks=True))


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_a_token_that_sees_nothing_gets_nothing(kind):
    torch.manual_seed(0)
    x = torch.randn(2, 12, 64)
    visible = torch.rand(2, 1, 12, 12) < 0.7
    visible[..., 5, :] = False
    mask = visible if kind == "bool" else torch.where(visible, 0.0, -torch.inf)
    captured, program, _ = lowered(Attention(kind), x, mask)
    with torch.no_grad():
        assert captured.source.module(x, mask).isfinite().all()
    assert sqnr_db(captured, program, x, mask) > 36
