"""One word for what an operator does, whatever an interpreter calls it."""

from __future__ import annotations

import re
from collections.abc import Sequence

MOVERS = frozenset(("transpose", "reshape", "copy"))
"""Kinds that move data and compute nothing."""
_LAYERS = frozenset(("conv2d", "depthwise_conv2d", "conv_transpose", "linear", "matmul", "attention"))
_COUNTED = re.compile(r"conv(?!ert)|linear|matmul|attention|lstm|gru|rnn|svdf|einsum|dot_general")
"""Kinds that multiply and add; those of these that are not understood have no known count."""
_ALIKE = {
    # XNNPACK's names of what it runs
    "convolution": "conv2d",
    "fully_connected": "linear",
    "dynamic_fully_connected": "linear",
    "batch_matrix_multiply": "matmul",
    "deconvolution": "conv_transpose",
    "static_reshape": "reshape",
    "static_expand_dims": "reshape",
    "fuse_dims": "reshape",
    "split_dims": "reshape",
    "constant_pad": "pad",
    "average_pooling": "avg_pool",
    "max_pooling": "max_pool",
    "argmax_pooling": "argmax_pool",
    "divide": "div",
    "multiply": "mul",
    "subtract": "sub",
    "negate": "neg",
    "cosine": "cos",
    "sine": "sin",
    "square_root": "sqrt",
    "reciprocal_square_root": "rsqrt",
    "leakyrelu": "leaky_relu",
    "approxgelu": "gelu",
    "resize_bilinear": "resize",
    "ceiling": "ceil",
    "exponential": "exp",
    # TFLite's
    "conv_2d": "conv2d",
    "depthwise_conv_2d": "depthwise_conv2d",
    "batch_matmul": "matmul",
    "transpose_conv": "conv_transpose",
    "average_pool_2d": "avg_pool",
    "max_pool_2d": "max_pool",
    "logistic": "sigmoid",
    "relu": "clamp",
    "relu6": "clamp",
    "relu_n1_to_1": "clamp",
    "relu_0_to_1": "clamp",
    "hard_swish": "hardswish",
    "padv2": "pad",
    "mirror_pad": "pad",
    "squeeze": "reshape",
    "expand_dims": "reshape",
    "strided_slice": "slice",
    "resize_nearest_neighbor": "resize",
    "cast": "convert",
    "quantize": "convert",
    "dequantize": "convert",
    # ATen's
    "addmm": "linear",
    "mm": "matmul",
    "bmm": "matmul",
    "permute": "transpose",
    "t": "transpose",
    "view": "reshape",
    "unsqueeze": "reshape",
    "flatten": "reshape",
    "clone": "copy",
    "clone_dim_order": "copy",
    "to_dim_order": "copy",
    "contiguous": "copy",
    "cat": "concatenation",
    "concat": "concatenation",
    "hardtanh": "clamp",
    "constant_pad_nd": "pad",
    "log_softmax": "log_softmax",
    "native_layer_norm": "layer_norm",
    "native_batch_norm_legit_no_training": "batch_norm",
    "max_pool2d": "max_pool",
    "max_pool2d_with_indices": "max_pool",
    "avg_pool2d": "avg_pool",
    "adaptive_avg_pool2d": "avg_pool",
    "upsample_bilinear2d": "resize",
    "upsample_nearest2d": "resize",
    "embedding": "gather",
    "index_select": "gather",
    "scaled_dot_product_attention": "attention",
}


def kind_of(name: str) -> str:
    """The word for an operator that an interpreter names.

    XNNPACK: `Convolution (NHWC, F32) IGEMM #3`; TFLite: `CONV_2D`, `ferryman.quant_linear`; ExecuTorch:
    `aten::permute_copy.out`, `ferryman::quant_linear.out`.
    """
    own = re.match(r"ferryman(?:::|\.)(\w+)", name)
    if own:
        return re.sub(r"(_tree)?(_sign)?$", "", own[1])
    if "(" in name:
        base = name.partition("(")[0].strip().replace(" ", "_").lower()
        if base == "convolution" and "DWConv" in name:
            return "depthwise_conv2d"
    else:
        base = name.rpartition("::")[2].partition(".")[0].strip("_").lower()
        base = re.sub(r"_copy$", "", base)
    return _ALIKE.get(base, base)


def of_channels(kind: str, input_shape: Sequence[int]) -> str:
    """The kind of an operator whose input, channels last, has this shape.

    Of one channel interpreters make a depthwise convolution, which is the same; `conv2d` is the model's word.
    """
    return "conv2d" if kind == "depthwise_conv2d" and tuple(input_shape[-1:]) == (1,) else kind


def layer_of(kind: str) -> str:
    """The kind, the same for those that XNNPACK runs one as the other: a convolution of 1 x 1 as a linear layer."""
    return "layer" if kind in ("conv2d", "depthwise_conv2d", "linear") else kind


def counts(kind: str) -> bool:
    """Whether such an operator multiplies and adds, so that its count is unknown unless someone counted."""
    return kind in _LAYERS or _COUNTED.search(kind) is not None
