from __future__ import annotations

import pytest
import torch
from torch import nn

from ferryman.converter.capture import capture
from ferryman.converter.quantize.bit_operations import bit_operations
from ferryman.converter.quantize.lower import lower_quantized
from ferryman.converter.quantize.recipe import parse_recipe
from ferryman.converter.source import make_source


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(2, 4, 3, stride=2, groups=2), nn.ConvTranspose2d(4, 3, 2)
        self.linear, self.matrix = nn.Linear(5, 6), nn.Parameter(torch.ones(6, 7))
        self.table = nn.Embedding(9, 5)

    def forward(self, image, ids):
        return self.up(self.conv(image)), self.linear(self.table(ids)) @ self.matrix


def test_layers_count_by_their_bits():
    batch = torch.export.Dim("batch", max=8)
    made = capture(
        make_source(
            Net().eval(),
            (torch.randn(2, 2, 7, 7), torch.zeros(2, 10, dtype=torch.long)),
            dynamic_shapes=({0: batch}, {0: batch}),
        )
    )
    conv, up, linear, matrix = 2 * 4 * 9 * (9 * 1), 2 * 4 * 9 * (3 * 4), 2 * 10 * 30, 2 * 10 * 42

    assert bit_operations(made) == (conv + up + linear + matrix) * 32 * 32
    _, forms = lower_quantized(made, parse_recipe("4bit"), [made.example])
    assert bit_operations(made, forms) == conv * 8 * 8 + up * 32 * 32 + (linear + matrix) * 4 * 8


def test_forms_are_of_that_program():
    made = capture(make_source(nn.Linear(3, 3).eval(), (torch.randn(1, 3),)))
    _, forms = lower_quantized(made, parse_recipe("int8"), [made.example])

    other = capture(make_source(nn.Sequential(nn.Linear(3, 3)).eval(), (torch.randn(1, 3),)))
    with pytest.raises(ValueError, match="1 layers have other forms: int8 of "):
        bit_operations(other, forms)
