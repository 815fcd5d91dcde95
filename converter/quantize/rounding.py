"""One layer's weights as a recipe rounds them, and as the artifact holds them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ferryman.converter.quant_bits import halves, pack_groups, pack_rows, pack_weights
from ferryman.converter.quantize.layers import Layer
from ferryman.converter.quantize.recipe import Recipe
from ferryman.converter.quantize.weights import Grid, Rounded


@dataclass(frozen=True)
class Packed:
    """What depends on a layer's bits in the artifact; its bias does not."""

    weight: torch.Tensor
    """uint8."""
    scale: torch.Tensor
    """float32[out] of a convolution, else float16."""
    zero: torch.Tensor | None
    """uint8."""
    index_bits: int = 0
    """Above 0: the weights are an index of those that are not zero, and these (see `sparse_bits`)."""
    unpack: bool = False
    """Of a convolution's: they are laid out with their zeros at each call, and computed densely."""

    @property
    def nbytes(self) -> int:
        """Of all of it."""
        return self.weight.nbytes + self.scale.nbytes + (0 if self.zero is None else self.zero.nbytes)


def grid_of(layer: Layer, bits: int, recipe: Recipe) -> Grid:
    """What a layer's weights are rounded to: convolutions have float32 scales per channel, others float16 by group."""
    image = layer.window is not None
    return Grid(
        bits=bits,
        group=0 if image or (bits == 8 and not recipe.blocks) else recipe.group,  # noqa: PLR2004  # bits
        asymmetric=recipe.asymmetric and not image,
        half=not image,
        keep_zeros=recipe.sparse,
    )


def round_layer(
    layer: Layer, bits: int, recipe: Recipe, hessian: torch.Tensor | None, mean: torch.Tensor | None
) -> tuple[Rounded, torch.Tensor]:
    """Round a layer's weights, and give its bias back what rounding does to it on average.

    Args:
        layer: which.
        bits: of a weight.
        recipe: how.
        hessian: as `round_weights` takes it.
        mean: float32[inputs]: of what the layer computes from, over calibration; None: the bias stays as it is.

    Returns:
        The weights, and the bias.
    """
    image = layer.window is not None
    rows = layer.weight.flatten(1)
    rounded = grid_of(layer, bits, recipe).round(rows, hessian)
    if mean is None or layer.embedding:
        return rounded, layer.bias
    # The bias of rounding: what the difference of weights makes of the mean input (Nagel et al. 2019, section 4.2).
    lost = (rows - rounded.values()).reshape(layer.weight.shape)
    groups = layer.window[5] if layer.window else 1
    spread = mean.reshape(groups, -1).repeat_interleave(len(rows) // groups, 0)
    return rounded, layer.bias + (lost.flatten(2).sum(2) if image else lost).mul(spread).sum(1)


def pack_layer(layer: Layer, bits: int, rounded: Rounded, *, lanes: bool = False) -> Packed:
    """Lay rounded weights as the operator of that layer reads them (see `native/kernels/quantized.h`).

    Args:
        layer: which.
        bits: of a weight.
        rounded: its weights.
        lanes: those of an embedding lie as a linear layer's, with which it shares the weights.
    """
    integers = rounded.integers.numpy()
    if layer.window:
        packed = pack_weights(integers.reshape(layer.weight.shape), layer.window[5], bits)
        return Packed(torch.from_numpy(packed), rounded.scale[:, 0], None)
    scale = rounded.scale.half()
    zero = None if rounded.zero is None else (rounded.zero + halves(bits)).to(torch.uint8)
    if layer.embedding and not lanes:
        return Packed(torch.from_numpy(pack_rows(integers, bits)), scale, zero)
    return Packed(
        torch.from_numpy(pack_weights(integers, 1, bits)),
        torch.from_numpy(pack_groups(scale.numpy())),
        None if zero is None else torch.from_numpy(pack_groups(zero.numpy())),
    )
