"""Quantized programs as torch computes them, by ferryman's own definition of their operators."""

from __future__ import annotations

import torch

from ferryman.converter.capture import capture
from ferryman.converter.quantize.lower import lower_quantized
from ferryman.converter.quantize.recipe import parse_recipe
from ferryman.converter.source import make_source


def lowered(model, form, calibration, x):
    """A function of inputs like `x`; calibration inputs are tensors."""
    program, _ = lower_quantized(capture(make_source(model, (x,))), parse_recipe(form), [(one,) for one in calibration])
    module = program.program.module()
    return lambda given: module(given).detach()


def sqnr_db(wanted, found):
    return float(10 * torch.log10(wanted.square().sum() / (wanted - found).square().sum()))
