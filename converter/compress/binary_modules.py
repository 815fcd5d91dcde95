"""Layers with weights of +-1, and activations of +-1 or real ones.

In eval mode a layer is plain tensor operations, which is what lowering sees:

    a = where(x >= 0, 1, -1)                       x itself with activations="real"
    b = where(weight >= 0, 1, -1)
    y = conv2d(constant_pad_nd(a), b) * scale[:, None, None] + bias         or linear(a, b) * scale + bias

All in float32. The scale comes after the convolution: with signs for activations every dot product is an integer, and
exact. In training mode the same numbers come out, and both signs pass gradients as the estimator says.

Sources: XNOR-Net (Rastegari et al. 2016, section 3.1) for the scale mean |weight| of each output channel, here learnt
on; BiPFT (Xing et al., AAAI 2024) for the low-rank estimator of what binarization loses.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.compress.estimators import Estimator, estimated_sign, make_estimator, sign
from ferryman.runtime.contracts.errors import CallerError

Activations = Literal["sign", "real"]
LATENT_LIMIT = 1.5
"""Latent weights stay within +-this: beyond ReSTE's threshold they would have no gradient, and never come back."""
_SCALE_MIN = 1e-6


class BinaryLayer(nn.Module):
    """What both kinds of layer hold.

    Attributes:
        weight: latent float weights, shaped as the dense layer's; only their signs count in the forward pass.
        scale: float[out], positive: see `clamp_latent_`.
        bias: float[out], or None.
        activations: "sign" or "real".
        estimator: the gradient of the signs.
    """

    weight: nn.Parameter
    scale: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self, weight_shape: tuple[int, ...], *, bias: bool, activations: Activations, estimator: str | Estimator
    ) -> None:
        super().__init__()
        if activations not in ("sign", "real"):
            raise CallerError(f"activations are 'sign' or 'real', found {activations!r}")
        self.activations = activations
        self.estimator = make_estimator(estimator)
        self.weight = nn.Parameter(torch.empty(weight_shape))
        self.scale = nn.Parameter(torch.empty(weight_shape[0]))
        self.bias = nn.Parameter(torch.empty(weight_shape[0])) if bias else None
        self._randomize()

    def _randomize(self) -> None:
        """Take what nn.Conv2d and nn.Linear begin with."""
        with torch.no_grad():
            nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
            self.scale.copy_(_mean_size(self.weight))
            if self.bias is not None:
                bound = 1 / math.sqrt(self.weight[0].numel())
                self.bias.uniform_(-bound, bound)

    @torch.no_grad()
    def load_dense_(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Take a dense layer's weights for the latent ones; the scale becomes their mean size by output channel.

        Args:
            weight: float, shaped as `self.weight`.
            bias: float[out], where the layer has one.
        """
        self.weight.copy_(weight)
        self.scale.copy_(_mean_size(weight).clamp(min=_SCALE_MIN))
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)

    @torch.no_grad()
    def clamp_latent_(self) -> None:
        """Bring latent weights and scale back to where they may be; call after every step of training."""
        self.weight.clamp_(-LATENT_LIMIT, LATENT_LIMIT)
        self.scale.clamp_(min=_SCALE_MIN)

    def binary_weight(self) -> torch.Tensor:
        """Weights of +-1.0, shaped as `weight`; with gradient in training mode."""
        return self._sign(self.weight)

    def _binary_input(self, x: torch.Tensor) -> torch.Tensor:
        return self._sign(x) if self.activations == "sign" else x

    def _sign(self, x: torch.Tensor) -> torch.Tensor:
        return estimated_sign(x, self.estimator) if self.training else sign(x)


class BinaryConv2d(BinaryLayer):
    """A 2-D convolution with weights of +-1.

    Args:
        in_channels: as nn.Conv2d, like all that follow up to bias.
        out_channels: of the output.
        kernel_size: one number, or height and width.
        stride: one number, or height and width.
        padding: one number, height and width, or "same" (stride 1 only).
        dilation: one number, or height and width.
        groups: input channels of a group are convolved with its own output channels.
        bias: whether to add one, after the scale.
        activations: "sign" binarizes the input; "real" takes it as it is.
        estimator: name or instance, for training.
        pad_value: what lies around the image, after the sign: 0 as usual, or 1 or -1, which keeps it binary.

    Raises:
        CallerError: an argument out of its range.

    Shape: float[N, in, H, W] -> float[N, out, H', W'], as nn.Conv2d.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = False,
        *,
        activations: Activations = "sign",
        estimator: str | Estimator = "reste",
        pad_value: int = 0,
    ) -> None:
        if pad_value not in (-1, 0, 1):
            raise CallerError(f"pad_value is -1, 0 or 1, found {pad_value}")
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise CallerError(f"{in_channels} and {out_channels} channels do not divide into {groups} groups")
        kernel = _pair(kernel_size)
        super().__init__(
            (out_channels, in_channels // groups, *kernel), bias=bias, activations=activations, estimator=estimator
        )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride, self.dilation = kernel, _pair(stride), _pair(dilation)
        self.pad_value = pad_value
        self.padding = _edges(padding, kernel, self.stride, self.dilation)
        """Left, right, top, bottom, as constant_pad_nd takes them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve float[N, in, H, W]."""
        signs = self._binary_input(x)
        left, right, top, bottom = self.padding
        padding = (top, left)
        if (self.pad_value and any(self.padding)) or (left, top) != (right, bottom):
            signs = torch.constant_pad_nd(signs, self.padding, float(self.pad_value))
            padding = (0, 0)
        dots = functional.conv2d(signs, self.binary_weight(), None, self.stride, padding, self.dilation, self.groups)
        y = dots * self.scale[:, None, None]
        return y if self.bias is None else y + self.bias[:, None, None]

    def extra_repr(self) -> str:
        """Describe the arguments that differ most between layers."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, groups={self.groups}, activations={self.activations}, pad_value={self.pad_value}"
        )


class BinaryLinear(BinaryLayer):
    """A linear layer with weights of +-1 and, where rank > 0, a low-rank path of real numbers beside it.

        y = linear(sign(x), sign(weight)) * scale + linear(linear(x, low_rank_in), low_rank_out) + bias

    What this is of BiPFT: the idea that what binarization loses is estimated by a learnt low-rank path over real
    activations. What it is not: BiPFT expands the residuals of the attention's products (scores and values) into
    polynomials and estimates those terms inside the attention, at rank 1, from pretraining data. Here the estimator
    stands beside each linear layer, at any rank, and begins at the best approximation of the *weights'* residual
    weight - scale * sign(weight) (truncated SVD; Eckart and Young 1936). So with activations="real" and full rank it
    equals the dense layer; with activations="sign" the loss from binarizing activations remains, for training to learn.

    Args:
        in_features: of the input.
        out_features: of the output.
        bias: whether to add one.
        activations: "sign" binarizes the input; "real" takes it as it is. The low-rank path always takes it as it is.
        estimator: name or instance, for training.
        rank: of the low-rank path; 0 for none.

    Attributes:
        low_rank_in: float[rank, in], or None.
        low_rank_out: float[out, rank], or None.

    Raises:
        CallerError: an argument out of its range.

    Shape: float[..., in] -> float[..., out].
    """

    low_rank_in: nn.Parameter | None
    low_rank_out: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        *,
        activations: Activations = "sign",
        estimator: str | Estimator = "reste",
        rank: int = 0,
    ) -> None:
        if not 0 <= rank <= min(in_features, out_features):
            raise CallerError(f"rank is 0 to {min(in_features, out_features)} for this layer, found {rank}")
        super().__init__((out_features, in_features), bias=bias, activations=activations, estimator=estimator)
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.low_rank_in = nn.Parameter(torch.empty(rank, in_features)) if rank else None
        self.low_rank_out = nn.Parameter(torch.empty(out_features, rank)) if rank else None
        self._estimate_residual()

    @torch.no_grad()
    def load_dense_(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Take a dense layer's weights; the low-rank path becomes the best estimate of their residual."""
        super().load_dense_(weight, bias)
        self._estimate_residual()

    @torch.no_grad()
    def _estimate_residual(self) -> None:
        if self.low_rank_in is None or self.low_rank_out is None:
            return
        left, size, right = torch.linalg.svd(self.weight - self.scale[:, None] * sign(self.weight), full_matrices=False)
        root = size[: self.rank].sqrt()  # half to each side, so that both learn at the same pace
        self.low_rank_in.copy_(root[:, None] * right[: self.rank])
        self.low_rank_out.copy_(left[:, : self.rank] * root)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map float[..., in]."""
        y = functional.linear(self._binary_input(x), self.binary_weight()) * self.scale
        if self.low_rank_in is not None and self.low_rank_out is not None:
            y = y + functional.linear(functional.linear(x, self.low_rank_in), self.low_rank_out)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """Describe the arguments."""
        return f"{self.in_features}, {self.out_features}, activations={self.activations}, rank={self.rank}"


def _mean_size(weight: torch.Tensor) -> torch.Tensor:
    return weight.abs().flatten(1).mean(1)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _edges(
    padding: int | tuple[int, int] | str, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Left, right, top, bottom; "same" puts the odd one right and below, as nn.Conv2d does."""
    if isinstance(padding, str):
        if padding != "same":
            raise CallerError(f"padding is a number, a pair or 'same', found {padding!r}")
        if stride != (1, 1):
            raise CallerError(f"padding='same' needs stride 1, found {stride}")
        tall, wide = ((k - 1) * d for k, d in zip(kernel, dilation, strict=True))
        return wide // 2, wide - wide // 2, tall // 2, tall - tall // 2
    height, width = _pair(padding)
    return width, width, height, height
