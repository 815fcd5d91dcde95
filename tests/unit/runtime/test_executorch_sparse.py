"""The sparse operators inside ExecuTorch, in a process of their own: exact, and never a crash."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ferryman.converter import sparse_operators as _sparse_operators  # noqa: F401  # registers them
from ferryman.runtime.contracts.errors import RuntimeFault
from tests.support.quantized_reference import conv_case, floats_of, linear_case
from tests.support.sparse_reference import FLT_MAX, SparseConv, held, sparse_blob
from tests.unit.runtime import test_executorch_quantized as quantized
from tests.unit.runtime.test_executorch_quantized import INPUT, Calls, export, run, tensor

OPS = torch.ops.ferryman


def conv_of(**options) -> SparseConv:
    random = np.random.default_rng(0)
    weight = random.integers(-5, 6, (12, 10, 3, 3)) * (random.random((12, 10, 3, 3)) < 0.3)
    x, bias = random.integers(-5, 6, (2, 10, 9, 8)), random.integers(-5, 6, 12)
    return SparseConv(x=x.astype("f4"), weight=weight.astype("f4"), bias=bias.astype("f4"), **options)


def placed(images: np.ndarray, last: bool) -> np.ndarray:
    return images.transpose(0, 2, 3, 1) if last else images


def call(case: SparseConv, last_in: bool = False, last_out: bool = False, constants=None, index_bits=None):
    values, index = constants or case.constants()
    return Calls(
        OPS.sparse_conv2d,
        *(INPUT, tensor(values), tensor(index.view(np.int8)), tensor(case.bias), None if case.add is None else INPUT),
        *(case.x.shape[1], list(case.weight.shape[2:]), list(case.stride), list(case.padding), list(case.dilation)),
        *(case.groups, last_in, last_out, case.index_bits if index_bits is None else index_bits, case.low, case.high),
    )


CONVS = {
    "dense": conv_of(index_bits=0),
    "bitmap": conv_of(stride=(2, 1), padding=(1, 1, 1, 1)),
    "gaps": conv_of(index_bits=4, low=0.0, high=6.0),
    "wide gaps": conv_of(index_bits=8, dilation=(2, 2)),
    "adds": conv_of(add=np.ones((2, 12, 7, 6), "f4"), low=0.0),
}


@pytest.mark.parametrize("last_in", [False, True])
@pytest.mark.parametrize("last_out", [False, True])
@pytest.mark.parametrize("name", CONVS)
def test_convolutions_are_exact(name, last_in, last_out, tmp_path):
    case = CONVS[name]
    inputs = [placed(case.x, last_in), *([] if case.add is None else [placed(case.add, last_out)])]
    found = run(export(call(case, last_in, last_out), inputs), inputs, tmp_path, threads=2)
    np.testing.assert_array_equal(found, placed(case.expected(), last_out))


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
@pytest.mark.parametrize("index_bits", [0, 1, 4, 8])
def test_a_linear_layer_takes_any_rank(leading, index_bits, tmp_path):
    random = np.random.default_rng(0)
    weight = (random.integers(-5, 6, (20, 70)) * (random.random((20, 70)) < 0.2)).astype("f4")
    x, bias = random.integers(-5, 6, (*leading, 70)).astype("f4"), random.integers(-5, 6, 20).astype("f4")
    index, there = held(weight, index_bits)
    constants = map(tensor, (weight[there], index.view(np.int8), bias))
    module = Calls(OPS.sparse_linear, INPUT, *constants, index_bits, 0.0, FLT_MAX)
    np.testing.assert_array_equal(run(export(module, [x]), [x], tmp_path, 2), np.maximum(x @ weight.T + bias, 0))


VALUES, INDEX = CONVS["gaps"].constants()


@pytest.mark.parametrize(
    ("values", "index", "index_bits"),
    [
        (VALUES[:-1], INDEX, 4),
        (np.append(VALUES, VALUES), INDEX, 4),
        (VALUES, INDEX[:-1], 4),
        (VALUES, INDEX[:1], 4),
        (VALUES, np.full_like(INDEX, 255), 4),
        (VALUES, np.concatenate([INDEX[:24], np.full(len(INDEX) - 24, 255, np.uint8)]), 4),
        (VALUES, INDEX, 1),
        (VALUES, INDEX, 8),
        (VALUES, INDEX, 0),
        (VALUES, INDEX, 5),
        (VALUES, INDEX, -1),
    ],
)
def test_an_index_that_does_not_fit_is_refused(values, index, index_bits, tmp_path):
    case = CONVS["gaps"]
    artifact = export(call(case, constants=(values, index), index_bits=index_bits), [case.x])
    with pytest.raises(RuntimeFault, match="index"):
        run(artifact, [case.x], tmp_path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"x": np.zeros((2, 9, 9, 8), "f4")}, "x must have its channels"),
        ({"groups": 3}, "groups must divide"),
        ({"low": 2.0, "high": 1.0}, "low end"),
        ({"add": np.zeros((2, 12, 7, 5), "f4")}, "add must have the output's shape"),
    ],
)
def test_what_no_convolution_has_is_refused(change, why, tmp_path):
    case = replace(CONVS["bitmap"], **change) if "x" not in change else CONVS["bitmap"]
    x = change.get("x", case.x)
    module = call(case) if "x" not in change else call(CONVS["bitmap"])
    inputs = [x, *([] if case.add is None else [case.add])]
    with pytest.raises(RuntimeFault, match=why):
        run(export(module, inputs), inputs, tmp_path)


@pytest.mark.parametrize("index_bits", [1, 4, 8])
@pytest.mark.parametrize("unpack", [False, True])
def test_quantized_convolutions_take_sparse_weights(index_bits, unpack, tmp_path):
    case = conv_case(20, 24, size=7, bits=4, int8_out=True)
    case = replace(case, weight=case.weight * (np.arange(case.weight.size).reshape(case.weight.shape) % 5 == 0))
    blob = tensor(sparse_blob(case.weight, 4, index_bits).view(np.int8))
    constants = (blob, tensor(case.scale), tensor(case.bias))
    arguments = (*quantized.conv_arguments(case), index_bits, unpack)
    module = Calls(torch.ops.ferryman.quant_conv2d, INPUT, *constants, None, *arguments)
    found = run(export(module, [case.x]), [case.x], tmp_path, 2)
    np.testing.assert_array_equal(found, quantized.by_pixel(case.expected(), last=True))


@pytest.mark.parametrize("index_bits", [1, 4, 8])
def test_quantized_linear_layers_take_sparse_weights(index_bits, tmp_path):
    layer = linear_case(70, 20, zero=False)
    layer = replace(layer, stored=np.where(np.arange(layer.stored.size).reshape(20, 70) % 4 == 0, layer.stored, 8))
    x = floats_of(np.random.default_rng(0), 5, 70)
    blob = sparse_blob(layer.stored[:, :, None, None] - 8, 4, index_bits)
    rest = (tensor(layer.constants()[1]), None, tensor(layer.bias), 4, 32, False, index_bits)
    for bytes_, good in ((blob, True), (blob[:-1], False), (np.full_like(blob, 255), False)):
        artifact = export(Calls(torch.ops.ferryman.quant_linear, INPUT, tensor(bytes_.view(np.int8)), *rest), [x])
        if good:
            np.testing.assert_array_equal(run(artifact, [x], tmp_path, 2), layer.expected(x))
        else:
            with pytest.raises(RuntimeFault, match="index"):
                run(artifact, [x], tmp_path)
