"""The sparse operators inside both TFLite interpreters: exact, and never a crash."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.runtime.contracts.errors import CallerError, RuntimeFault
from ferryman.runtime.native_library import native_library
from tests.support.packages import ADD_ONE
from tests.support.quantized_reference import conv_case, floats_of, linear_case
from tests.support.sparse_reference import FLT_MAX, SparseConv, held, sparse_blob
from tests.support.tflite_models import Graph, numbers
from tests.unit.runtime import test_tflite_quantized as quantized
from tests.unit.runtime.native.test_sparse import sparse_convolutions
from tests.unit.runtime.test_tflite_delegate import INTERPRETERS, LIBRARY, Worker, fuzz
from tests.unit.runtime.test_tflite_quantized import word

CONV = "ferryman.sparse_conv2d"
LINEAR = "ferryman.sparse_linear"
pytestmark = pytest.mark.skipif(native_library(LIBRARY) is None, reason=f"{LIBRARY} is not built")
NAMES = (
    *("version", "channels", "out", "kh", "kw", "sh", "sw", "dh", "dw", "top", "left", "bottom", "right", "groups"),
    *("last_in", "last_out", "index_bits", "add", "low", "high"),
)


@pytest.fixture(scope="module", params=INTERPRETERS)
def worker(request, tmp_path_factory):
    worker = Worker(request.param, tmp_path_factory.mktemp("artifacts"))
    worker.open(ADD_ONE)
    yield worker
    worker.close()


def placed(images: np.ndarray, last: bool) -> np.ndarray:
    return images.transpose(0, 2, 3, 1) if last else images


def conv_numbers(case: SparseConv, last_in: bool, last_out: bool) -> dict[str, int]:
    values = (
        *(1, case.x.shape[1], len(case.weight), *case.weight.shape[2:], *case.stride, *case.dilation, *case.padding),
        *(case.groups, int(last_in), int(last_out), case.index_bits, int(case.add is not None)),
        *(word(case.low), word(case.high)),
    )
    return dict(zip(NAMES, values, strict=True))


def conv_model(
    case: SparseConv, last_in: bool = False, last_out: bool = False, constants=None, **changes: int
) -> bytes:
    graph = Graph()
    inputs = [
        graph.input(placed(case.x, last_in).shape),
        *map(graph.constant, constants or (*case.constants(), case.bias)),
    ]
    if case.add is not None:
        inputs.append(graph.input(placed(case.add, last_out).shape))
    y = graph.tensor(placed(case.expected(), last_out).shape)
    graph.custom(CONV, numbers(*(conv_numbers(case, last_in, last_out) | changes).values()), inputs, [y])
    return graph.output(y).build()


@fuzz(80)
@given(case=sparse_convolutions(), last_in=st.booleans(), last_out=st.booleans(), threads=st.sampled_from([1, 3]))
def test_convolutions_are_exact(worker, case, last_in, last_out, threads):
    if case.weight.any() or case.index_bits == 0:
        worker.open(conv_model(case, last_in, last_out), threads)
        added = [] if case.add is None else [placed(case.add, last_out)]
        (found,) = worker.run(placed(case.x, last_in), *added)
        np.testing.assert_array_equal(found, placed(case.expected(), last_out))


LAYER_WEIGHT = (np.arange(20 * 64) % 7 * (np.arange(20 * 64) % 3 == 0)).reshape(20, 64).astype("f4")
LAYER_BIAS = np.arange(20, dtype="f4")


def linear_model(*values: int, shape=(2, 3, 64), constants=None) -> bytes:
    index, there = held(LAYER_WEIGHT, 8)
    graph = Graph()
    inputs = [graph.input(shape), *map(graph.constant, constants or (LAYER_WEIGHT[there], index, LAYER_BIAS))]
    y = graph.tensor((*shape[:-1], 20))
    graph.custom(LINEAR, numbers(*(values or (1, 64, 20, 8, word(0.0), word(FLT_MAX)))), inputs, [y])
    return graph.output(y).build()


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_a_linear_layer_takes_any_rank(worker, leading):
    x = np.random.default_rng(0).integers(-9, 10, (*leading, 64)).astype("f4")
    worker.open(linear_model(shape=x.shape))
    np.testing.assert_array_equal(worker.run(x)[0], np.maximum(x @ LAYER_WEIGHT.T + LAYER_BIAS, 0))


CASE = SparseConv(
    x=np.ones((1, 4, 5, 5), "f4"),
    weight=(np.arange(6 * 4 * 9) % 3).reshape(6, 4, 3, 3).astype("f4"),
    bias=np.zeros(6, "f4"),
    index_bits=8,
)
VALUES, INDEX = CASE.constants()
ADDS = replace(CASE, add=np.zeros((1, 6, 3, 3), "f4"))
REFUSED = {
    "version": (conv_model(CASE, version=2), "expected version 1, found version 2"),
    "channels": (conv_model(CASE, channels=5), "expected channels 5, found 4"),
    "more out": (conv_model(CASE, out=7), "bias: expected 7 elements, found 6"),
    "nothing added": (conv_model(CASE, add=1), "expected 5 inputs and 1 output, found 4"),
    "added": (conv_model(ADDS, add=0), "expected 4 inputs and 1 output, found 5"),
    "added, smaller": (
        conv_model(replace(ADDS, padding=(1, 1, 1, 1), add=np.zeros((1, 6, 1, 1), "f4")), top=0),
        "shape",
    ),
    "index bits": (conv_model(CASE, index_bits=3), "0, 1, 4 or 8 bits"),
    "low": (conv_model(CASE, low=word(np.nan)), "low is not finite"),
    "ends": (conv_model(CASE, low=word(2.0), high=word(1.0)), "low end"),
    "groups": (conv_model(CASE, groups=3), "groups must divide"),
    "kernel": (conv_model(CASE, kh=9), "kernel does not fit"),
    "linear, channels": (linear_model(1, 63, 20, 8, 0, 0), "expected channels 63, found 64"),
    "linear, short": (linear_model(1, 64, 20, 8), "options: expected 24 bytes, found 16"),
    "values of int32": (
        conv_model(CASE, constants=(VALUES.astype("i4"), INDEX, CASE.bias)),
        "values: expected float32",
    ),
    "index of floats": (conv_model(CASE, constants=(VALUES, VALUES, CASE.bias)), "index: expected uint8"),
}
REFUSED_WHEN_RUN = {
    "fewer values": (VALUES[:-1], INDEX),
    "more values": (np.append(VALUES, VALUES[:1]), INDEX),
    "fewer bytes": (VALUES, INDEX[:-1]),
    "one byte": (VALUES, INDEX[:1]),
    "more bytes": (VALUES, np.append(INDEX, INDEX[:1])),
    "far away": (VALUES, np.concatenate([INDEX[:12], np.full(len(INDEX) - 12, 255, np.uint8)])),
    "many": (VALUES, np.full_like(INDEX, 255)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_artifacts_are_refused(worker, name):
    artifact, why = REFUSED[name]
    with pytest.raises((CallerError, RuntimeFault), match=why):
        worker.open(artifact)


@pytest.mark.parametrize("name", REFUSED_WHEN_RUN)
def test_a_hostile_index_is_refused(worker, name):
    worker.open(conv_model(CASE, constants=(*REFUSED_WHEN_RUN[name], CASE.bias)))
    with pytest.raises(RuntimeFault, match="index"):
        worker.run(CASE.x)


@pytest.mark.parametrize("index_bits", [1, 4, 8])
@pytest.mark.parametrize("unpack", [False, True])
def test_quantized_convolutions_take_sparse_weights(worker, index_bits, unpack):
    case = conv_case(20, 24, size=7, bits=4, int8_out=True)
    case = replace(case, weight=case.weight * (np.arange(case.weight.size).reshape(case.weight.shape) % 5 == 0))
    graph = Graph()
    constants = (sparse_blob(case.weight, 4, index_bits), case.scale, case.bias)
    expected = quantized.by_pixel(case.expected())
    y = graph.tensor(expected.shape, np.int8)
    options = quantized.conv_numbers(case) | {"index_bits": index_bits, "unpack": int(unpack)}
    inputs = [graph.input(quantized.by_pixel(case.x).shape), *map(graph.constant, constants)]
    graph.custom(quantized.CONV, numbers(*options.values()), inputs, [y])
    worker.open(graph.output(y).build(), 2)
    np.testing.assert_array_equal(worker.run(quantized.by_pixel(case.x))[0], expected)


@pytest.mark.parametrize("index_bits", [1, 4, 8])
def test_quantized_linear_layers_take_sparse_weights(worker, index_bits):
    layer = linear_case(64, 20, zero=False)
    layer = replace(layer, stored=np.where(np.arange(layer.stored.size).reshape(20, 64) % 4 == 0, layer.stored, 8))
    x = floats_of(np.random.default_rng(0), 5, 64)
    blob = sparse_blob(layer.stored[:, :, None, None] - 8, 4, index_bits)
    graph = Graph()
    inputs = [graph.input(x.shape), *map(graph.constant, (blob, layer.constants()[1], layer.bias))]
    y = graph.tensor((5, 20))
    graph.custom(quantized.LINEAR, numbers(3, 64, 20, 4, 32, 0, index_bits), inputs, [y])
    worker.open(graph.output(y).build(), 2)
    np.testing.assert_array_equal(worker.run(x)[0], layer.expected(x))
    for wrong in (blob[:-1], np.full_like(blob, 255)):
        graph = Graph()
        inputs = [graph.input(x.shape), *map(graph.constant, (wrong, layer.constants()[1], layer.bias))]
        y = graph.tensor((5, 20))
        graph.custom(quantized.LINEAR, numbers(3, 64, 20, 4, 32, 0, index_bits), inputs, [y])
        worker.open(graph.output(y).build(), 2)
        with pytest.raises(RuntimeFault, match="index"):
            worker.run(x)
