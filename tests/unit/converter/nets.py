"""Small modules for the converter's tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ferryman.converter.capture import Captured, capture
from ferryman.converter.source import make_source


class Function(torch.nn.Module):
    """A module that calls a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, *args: torch.Tensor) -> Any:
        return self.function(*args)


def captured(function: Callable[..., Any], *inputs: torch.Tensor, dynamic: Any = None) -> Captured:
    """A function of `inputs`, exported; `dynamic` has one entry an input."""
    shapes = None if dynamic is None else (dynamic,)
    return capture(make_source(Function(function), inputs, dynamic_shapes=shapes, name="net"))
