"""The quantized operators inside both TFLite interpreters: exact, and never a crash."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.runtime.contracts.errors import CallerError, RuntimeFault
from ferryman.runtime.native_library import native_library
from tests.support.packages import ADD_ONE
from tests.support.quantized_cases import convolutions
from tests.support.quantized_reference import (
    Int8,
    QuantConv,
    QuantEmbedding,
    QuantLinear,
    conv_case,
    embedding_case,
    floats_of,
    linear_case,
)
from tests.support.tflite_models import Graph, numbers
from tests.unit.runtime.test_tflite_delegate import INTERPRETERS, LIBRARY, Worker, fuzz

CONV = "ferryman.quant_conv2d"
LINEAR = "ferryman.quant_linear"
EMBEDDING = "ferryman.quant_embedding"
pytestmark = pytest.mark.skipif(native_library(LIBRARY) is None, reason=f"{LIBRARY} is not built")


@pytest.fixture(scope="module", params=INTERPRETERS)
def worker(request, tmp_path_factory):
    worker = Worker(request.param, tmp_path_factory.mktemp("artifacts"))
    worker.open(ADD_ONE)
    yield worker
    worker.close()


def word(value: float) -> int:
    """A float's bits."""
    return struct.unpack("<i", struct.pack("<f", value))[0]


NAMES = (
    *("version", "channels", "out_channels", "kernel_h", "kernel_w", "stride_h", "stride_w", "dilation_h"),
    *("dilation_w", "pad_top", "pad_left", "pad_bottom", "pad_right", "groups", "channels_last", "bits"),
    *("x_scale", "x_zero", "out_scale", "out_zero", "out_low", "out_high", "add_scale", "add_zero"),
    *("index_bits", "unpack"),
)


def conv_numbers(case: QuantConv, *, last: bool = True) -> dict[str, int]:
    out = case.out or Int8(0.0, 0, 0, 0)
    values = (
        *(3, case.x.shape[1], len(case.weight), *case.weight.shape[2:], *case.stride, *case.dilation, *case.padding),
        *(case.groups, int(last), case.bits, word(case.x_scale), case.x_zero),
        *(word(out.scale), out.zero, out.low, out.high, word(case.add_scale), case.add_zero, 0, 0),
    )
    return dict(zip(NAMES, values, strict=True))


def by_pixel(images: np.ndarray, *, last: bool = True) -> np.ndarray:
    return images.transpose(0, 2, 3, 1) if last or images.dtype == np.int8 else images


def add_conv(graph: Graph, x: int, case: QuantConv, *, last: bool = True, add: int | None = None) -> int:
    """The convolution on tensor x; what it adds is a tensor already, or becomes an input."""
    expected = by_pixel(case.expected(), last=last)
    inputs = [x, *(graph.constant(array) for array in (case.packed(), case.scale, case.bias))]
    if case.add is not None:
        dynamic = graph.subgraph.tensors[x].shapeSignature and [-1] * 4
        inputs.append(graph.input(by_pixel(case.add).shape, np.int8, dynamic=dynamic) if add is None else add)
    output = graph.tensor(expected.shape, expected.dtype.type)
    graph.custom(CONV, numbers(*conv_numbers(case, last=last).values()), inputs, [output])
    return output


def conv_model(case: QuantConv, *, last: bool = True, dynamic: bool = False) -> bytes:
    graph = Graph()
    x = by_pixel(case.x, last=last)
    y = graph.input(x.shape, x.dtype.type, dynamic=[-1] * 4 if dynamic else None)
    return graph.output(add_conv(graph, y, case, last=last)).build()


def inputs_of(case: QuantConv, *, last: bool = True) -> list[np.ndarray]:
    x = by_pixel(case.x, last=last)
    return [x] if case.add is None else [x, by_pixel(case.add)]


def linear_model(layer: QuantLinear, shape: Sequence[int], *, dynamic: bool = False) -> bytes:
    graph = Graph()
    x = graph.input(shape, dynamic=[-1] * len(shape) if dynamic else None)
    return graph.output(add_linear(graph, x, layer, shape)).build()


def add_linear(graph: Graph, x: int, layer: QuantLinear, shape: Sequence[int]) -> int:
    weight, scale, zero = layer.constants()
    constants = [weight, scale, layer.bias, *([] if zero is None else [zero])]
    y = graph.tensor((*shape[:-1], len(layer.bias)))
    options = numbers(3, layer.stored.shape[1], len(layer.bias), layer.bits, layer.group, 0, 0)
    graph.custom(LINEAR, options, [x, *map(graph.constant, constants)], [y])
    return y


def add_embedding(graph: Graph, ids: int, table: QuantEmbedding, shape: Sequence[int]) -> int:
    constants = [table.packed(), table.scale, *([] if table.zero is None else [table.zero])]
    y = graph.tensor((*shape, table.stored.shape[1]))
    options = numbers(3, *table.stored.shape, table.bits, table.group, 0)
    graph.custom(EMBEDDING, options, [ids, *map(graph.constant, constants)], [y])
    return y


def embedding_model(table: QuantEmbedding, ids: np.ndarray, *, dynamic: bool = False) -> bytes:
    graph = Graph()
    x = graph.input(ids.shape, ids.dtype.type, dynamic=[-1] * ids.ndim if dynamic else None)
    return graph.output(add_embedding(graph, x, table, ids.shape)).build()


@fuzz(120)
@given(case=convolutions(), last=st.booleans(), threads=st.sampled_from([1, 3]))
def test_convolutions_equal_the_reference_to_the_bit(worker, case, last, threads):
    worker.open(conv_model(case, last=last), threads)
    (found,) = worker.run(*inputs_of(case, last=last))
    np.testing.assert_array_equal(found, by_pixel(case.expected(), last=last))


@fuzz(60)
@given(
    leading=st.lists(st.integers(1, 4), max_size=4),
    channels=st.sampled_from([32, 64, 70, 96, 256]),
    whole=st.booleans(),
    out=st.integers(1, 70),
    bits=st.sampled_from([8, 4, 2]),
    zero=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_linear_layers_take_any_rank(worker, leading, channels, whole, out, bits, zero, seed):
    channels = channels + 5 if whole else channels
    layer = linear_case(channels, out, bits, channels if whole else 32, zero=zero, seed=seed)
    x = floats_of(np.random.default_rng(seed), *leading, channels)
    worker.open(linear_model(layer, x.shape), 2)
    np.testing.assert_array_equal(worker.run(x)[0], layer.expected(x))


@fuzz(60)
@given(
    shape=st.lists(st.integers(1, 4), max_size=4),
    dtype=st.sampled_from([np.int32, np.int64]),
    channels=st.sampled_from([32, 64, 37]),
    whole=st.booleans(),
    bits=st.sampled_from([8, 4, 2]),
    zero=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_embeddings_take_any_rank(worker, shape, dtype, channels, whole, bits, zero, seed):
    table = embedding_case(50, channels, bits, channels if whole else 32, zero=zero, seed=seed)
    ids = np.asarray(np.random.default_rng(seed).integers(0, 50, shape), dtype)
    worker.open(embedding_model(table, ids))
    np.testing.assert_array_equal(worker.run(ids)[0], table.expected(ids))


def test_layers_hand_int8_to_each_other(worker):
    """A residual block: what goes in is added to what comes out."""
    first = conv_case(3, 24, size=9, batch=2, int8_out=True)
    between = first.expected()
    second = replace(conv_case(24, 24, bits=4, int8=True, int8_out=True, seed=1), x=between, x_scale=0.05, x_zero=-3)
    inner = second.expected()
    third = replace(conv_case(24, 24, bits=2, int8=True, int8_out=True, seed=2), x=inner, x_scale=0.05)
    third = replace(third, add=between, add_scale=0.05, add_zero=-3)
    last = replace(conv_case(24, 40, int8=True, kernel=1, seed=3), x=third.expected(), x_scale=0.05)
    graph = Graph()
    x = by_pixel(first.x)
    y = add_conv(graph, graph.input(x.shape), first)
    z = add_conv(graph, add_conv(graph, y, second), third, add=y)
    worker.open(graph.output(add_conv(graph, z, last)).build(), 2)
    (found,) = worker.run(x)
    np.testing.assert_array_equal(found, by_pixel(last.expected()))


def test_one_tensor_may_be_convolved_and_added(worker):
    case = conv_case(16, 16, int8=True, int8_out=True)
    case = replace(case, add=case.x, add_scale=0.03, add_zero=5)
    graph = Graph()
    x = graph.input(by_pixel(case.x).shape, np.int8)
    worker.open(graph.output(add_conv(graph, x, case, add=x)).build())
    np.testing.assert_array_equal(worker.run(by_pixel(case.x))[0], by_pixel(case.expected()))


def test_words_become_rows(worker):
    table, layer = embedding_case(30, 64), linear_case(64, 20, 2)
    ids = np.random.default_rng(0).integers(0, 30, (2, 5))
    graph = Graph()
    rows = add_embedding(graph, graph.input(ids.shape, np.int64), table, ids.shape)
    worker.open(graph.output(add_linear(graph, rows, layer, (2, 5, 64))).build())
    np.testing.assert_array_equal(worker.run(ids)[0], layer.expected(table.expected(ids)))


def test_bytes_may_be_called_int8(worker):
    """There are converters that write no constants of uint8."""
    worker.open(node(constants=(WEIGHTS.view(np.int8), SCALE, BIAS)))
    np.testing.assert_array_equal(worker.run(by_pixel(CASE.x))[0], by_pixel(CASE.expected()))
    x = floats_of(np.random.default_rng(0), 2, 64)
    weight, scale, bias = LAYER_CONSTANTS
    worker.open(linear(constants=(weight.view(np.int8), scale, bias, LAYER_ZERO.view(np.int8))))
    np.testing.assert_array_equal(worker.run(x)[0], LAYER.expected(x))
    ids = np.array([[1, 2, 3], [29, 0, 1]], np.int32)
    worker.open(embedding(constants=(TABLE.packed().view(np.int8), TABLE.scale, TABLE.zero.view(np.int8))))
    np.testing.assert_array_equal(worker.run(ids)[0], TABLE.expected(ids))


def test_constant_numbers_lie_at_any_multiple_of_four(worker):
    table = embedding_case(30, 32)
    ids = np.arange(7, dtype=np.int64)
    for filler in range(1, 5):  # moves what follows by so many words
        graph = Graph()
        graph.constant(np.zeros(filler, np.int32))
        y = add_embedding(graph, graph.constant(ids), table, ids.shape)
        x = graph.input((1,), np.int32)  # interpreters want one
        worker.open(graph.output(y, add_embedding(graph, x, table, (1,))).build())
        found, _ = worker.run(np.zeros(1, np.int32))
        np.testing.assert_array_equal(found, table.expected(ids))


def test_not_a_number_is_the_low_end(worker):
    case = conv_case(3, 16)
    case.x[0, 0, 1, 1:] = [np.nan, np.inf, -np.inf]
    worker.open(conv_model(case))
    np.testing.assert_array_equal(worker.run(by_pixel(case.x))[0], by_pixel(case.expected()))


def test_threads_change_nothing(worker):
    case = conv_case(40, 80, size=24, batch=2, int8_out=True)
    layer = linear_case(256, 300)
    rows = floats_of(np.random.default_rng(0), 20, 256)
    for model, x in ((conv_model(case), by_pixel(case.x)), (linear_model(layer, rows.shape), rows)):
        found = []
        for threads in (1, 3):
            worker.open(model, threads)
            found += [worker.run(x)[0] for _ in range(10)]
        assert all(np.array_equal(again, found[0]) for again in found)


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("int8", [False, True])
def test_the_batch_of_images_may_change_between_runs(worker, int8, adds):
    case = conv_case(int8=int8, int8_out=True, adds=adds)
    worker.open(conv_model(case, dynamic=True))
    for batch, size in ((1, 4), (5, 4), (2, 9), (1, 4)):
        other = conv_case(int8=int8, adds=adds, batch=batch, size=size, seed=batch)
        other = replace(case, x=other.x, add=other.add)
        np.testing.assert_array_equal(worker.run(*inputs_of(other))[0], by_pixel(other.expected()))


def test_the_number_of_rows_may_change_between_runs(worker):
    layer = linear_case(64, 20)
    worker.open(linear_model(layer, (1, 1, 64), dynamic=True))
    for leading in ((1, 1), (3, 5), (2, 1), (1, 1)):
        x = floats_of(np.random.default_rng(leading[0]), *leading, 64)
        np.testing.assert_array_equal(worker.run(x)[0], layer.expected(x))
    with pytest.raises(RuntimeFault, match="x: expected channels 64, found 63"):
        worker.run(np.zeros((1, 1, 63), np.float32))


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_the_count_of_numbers_may_change_between_runs(worker, dtype):
    table = embedding_case(20, 64)
    worker.open(embedding_model(table, np.zeros((1, 1), dtype), dynamic=True))
    for shape in ((1, 1), (3, 7), (1, 2)):
        ids = np.random.default_rng(shape[1]).integers(0, 20, shape).astype(dtype)
        np.testing.assert_array_equal(worker.run(ids)[0], table.expected(ids))


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("wrong", [-1, 20, 2**31 - 1, -(2**31)])
def test_a_number_that_is_none_is_an_error_and_the_next_that_is_runs(worker, dtype, wrong):
    table = embedding_case(20, 64)
    ids = np.array([[0, 19, 3]], dtype)
    worker.open(embedding_model(table, ids))
    for _ in range(2):
        with pytest.raises(RuntimeFault, match=EMBEDDING):
            worker.run(np.array([[0, wrong, 1]], dtype))
        np.testing.assert_array_equal(worker.run(ids)[0], table.expected(ids))


@pytest.mark.parametrize("channels", [31, 33])
def test_a_size_that_does_not_fit_is_an_error_and_the_next_that_does_runs(worker, channels):
    case = conv_case()
    worker.open(conv_model(case, dynamic=True))
    for _ in range(2):
        with pytest.raises(RuntimeFault, match=f"x: expected channels 32, found {channels}"):
            worker.run(np.zeros((1, 4, 4, channels), np.float32))
        np.testing.assert_array_equal(worker.run(by_pixel(case.x))[0], by_pixel(case.expected()))


def test_what_is_added_must_keep_up(worker):
    case = conv_case(adds=True)
    worker.open(conv_model(case, dynamic=True))
    with pytest.raises(RuntimeFault, match="add must have the output's shape"):
        worker.run(np.zeros((2, 4, 4, 32), np.float32), by_pixel(case.add))
    np.testing.assert_array_equal(worker.run(*inputs_of(case))[0], by_pixel(case.expected()))


# Hostile artifacts.

CASE = conv_case()
CONSTANTS = (CASE.packed(), CASE.scale, CASE.bias)
WEIGHTS, SCALE, BIAS = CONSTANTS
ADDING = {"add_scale": word(0.5)}
INT8_OUT = {"out_scale": word(0.5), "out_low": -128, "out_high": 127}
IMAGES = ((1, 4, 4, 32), np.float32)
SUM = ((1, 4, 4, 16), np.int8)
LAYER = linear_case(64, 20)
LAYER_CONSTANTS = (LAYER.constants()[0], LAYER.constants()[1], LAYER.bias)
LAYER_ZERO = LAYER.constants()[2]
TABLE = embedding_case(30, 64)
TABLE_CONSTANTS = (TABLE.packed(), TABLE.scale)


def node(
    name: str = CONV,
    options: bytes | None = None,
    x: tuple[tuple[int, ...], type] = IMAGES,
    constants: Sequence[np.ndarray] = CONSTANTS,
    outputs: Sequence[type] = (np.float32,),
    more: Sequence[tuple[tuple[int, ...], type]] = (),
) -> bytes:
    """One node of anything: x, constants, then more that are none."""
    graph = Graph()
    inputs = [graph.input(*x), *map(graph.constant, constants), *(graph.input(*other) for other in more)]
    graph.output(*(graph.tensor((1, 1, 1, 1), dtype) for dtype in outputs))
    graph.custom(name, conv_options() if options is None else options, inputs, graph.subgraph.outputs)
    return graph.build()


def conv_options(**changes: int) -> bytes:
    return numbers(*(conv_numbers(CASE) | changes).values())


def conv(**changes: int) -> bytes:
    return node(options=conv_options(**changes))


def linear(
    *values: int, shape: tuple[int, ...] = (2, 64), constants: Sequence[np.ndarray] = LAYER_CONSTANTS, **rest: object
) -> bytes:
    return node(LINEAR, numbers(*(values or (3, 64, 20, 4, 32, 0, 0))), (shape, np.float32), constants, **rest)


def embedding(
    *values: int, x: type = np.int32, constants: Sequence[np.ndarray] = TABLE_CONSTANTS, **rest: object
) -> bytes:
    return node(EMBEDDING, numbers(*(values or (3, 30, 64, 4, 32, 0))), ((2, 3), x), constants, **rest)


def wired(change) -> bytes:
    """A convolution that adds, its graph changed before it is written."""
    case = conv_case(adds=True, int8_out=True)
    graph = Graph()
    graph.output(add_conv(graph, graph.input((1, 4, 4, 32)), case))
    change(graph)
    return graph.build()


def _rewire(at: int, to: int | str):
    def change(graph):
        operator = graph.subgraph.operators[0]
        target = graph.subgraph.tensors[operator.inputs[at]]
        shape, dtype = target.shape, {0: np.float32, 3: np.uint8, 9: np.int8}[target.type]
        operator.inputs[at] = graph.input(shape, dtype) if to == "variable" else to

    return change


def _output_is_add(graph):
    operator = graph.subgraph.operators[0]
    operator.outputs[0] = graph.subgraph.outputs[0] = operator.inputs[4]


def _sparse_weights(graph):
    """A constant whose bytes are fewer than its shape says."""
    tensor = graph.subgraph.tensors[graph.subgraph.operators[0].inputs[1]]
    graph.buffers[tensor.buffer].data = np.zeros(64, np.uint8)


ANY = f"{CONV}: "  # what the kernels say of numbers is theirs
REFUSED = {
    "no options": (node(options=b""), "options: expected 104 bytes, found 0"),
    "short": (node(options=conv_options()[:-4]), "options: expected 104 bytes, found 100"),
    "long": (node(options=conv_options() + bytes(4)), "options: expected 104 bytes, found 108"),
    "huge options": (node(options=numbers(3, *[7] * 100_000)), "options: expected 104 bytes, found 400004"),
    "version 0": (conv(version=0), "options: expected version 3, found version 0"),
    "version 1": (conv(version=1), "options: expected version 3, found version 1"),
    "longer name": (node(CONV + "2"), "no operator ferryman.quant_conv2d2"),
    "three inputs": (node(constants=CONSTANTS[:2]), "expected 4 inputs and 1 output, found 3 and 1"),
    "five inputs": (node(more=[SUM]), "expected 4 inputs and 1 output, found 5 and 1"),
    "nothing to add": (conv(**ADDING), "expected 5 inputs and 1 output, found 4 and 1"),
    "two outputs": (node(outputs=(np.float32, np.float32)), "expected 4 inputs and 1 output, found 4 and 2"),
    "no inputs": (wired(lambda g: g.subgraph.operators[0].inputs.clear()), "expected 5 inputs and 1 output"),
    "int x": (node(x=(IMAGES[0], np.int32)), "x: expected float32 or int8, found int32"),
    "uint8 x": (node(x=(IMAGES[0], np.uint8)), "x: expected float32 or int8, found uint8"),
    "half x": (node(x=(IMAGES[0], np.float16)), "x: expected float32 or int8, found float16"),
    "int32 weights": (
        node(constants=(WEIGHTS.view(np.int32), SCALE, BIAS)),
        "weights: expected uint8, found int32",
    ),
    "half scale": (node(constants=(WEIGHTS, SCALE.astype("f2"), BIAS)), "scale: expected float32, found float16"),
    "int bias": (node(constants=(WEIGHTS, SCALE, BIAS.view("i4"))), "bias: expected float32, found int32"),
    "float output": (conv(**INT8_OUT), "output: expected int8, found float32"),
    "int8 output": (node(outputs=(np.int8,)), "output: expected float32, found int8"),
    "uint8 output": (node(options=conv_options(**INT8_OUT), outputs=(np.uint8,)), "output: expected int8, found uint8"),
    "float add": (
        node(options=conv_options(**ADDING), more=[(SUM[0], np.float32)]),
        "add: expected int8, found float32",
    ),
    "short add": (node(options=conv_options(**ADDING), more=[((1, 4, 4, 15), np.int8)]), "add must have the output's"),
    "flat add": (node(options=conv_options(**ADDING), more=[((256,), np.int8)]), "add must have the output's shape"),
    "add, channels first": (
        node(
            options=conv_options(**ADDING, channels_last=0),
            x=((1, 32, 4, 4), np.float32),
            more=[((1, 16, 4, 4), np.int8)],
        ),
        "add must have the output's shape, channels last",
    ),
    "rank 3": (node(x=((4, 4, 32), np.float32)), "x: expected rank 4, found rank 3"),
    "rank 0": (node(x=((), np.float32)), "x: expected rank 4, found rank 0"),
    "rank 5": (node(x=((1, 1, 4, 4, 32), np.float32)), "x: expected rank 4, found rank 5"),
    "no batch": (node(x=((0, 4, 4, 32), np.float32)), ANY),
    "channels": (node(x=((1, 4, 4, 64), np.float32)), "x: expected channels 32, found 64"),
    "channels first": (conv(channels_last=0), "x: expected channels 32, found 4"),
    "few weights": (node(constants=(WEIGHTS.reshape(-1)[:-1], SCALE, BIAS)), "weights: expected 4608 .*found 4607"),
    "many weights": (node(constants=(np.zeros(9999, np.uint8), SCALE, BIAS)), "weights: expected 4608 .*found 9999"),
    "fewer bits": (conv(bits=4), "weights: expected 2304 elements, found 4608"),
    "short scale": (node(constants=(WEIGHTS, SCALE[:-1], BIAS)), "scale: expected 16 elements, found 15"),
    "short bias": (node(constants=(WEIGHTS, SCALE, BIAS[:1])), "bias: expected 16 elements, found 1"),
    "huge out": (conv(out_channels=2**24), "weights: expected .* elements|" + ANY),
    "x_scale": (conv(x_scale=word(np.nan)), "x_scale is not finite"),
    "infinite out_scale": (conv(out_scale=word(np.inf)), "out_scale is not finite"),
    "infinite add_scale": (
        node(options=conv_options(add_scale=word(-np.inf)), more=[SUM]),
        "add_scale is not finite",
    ),
    "dynamic int8": (
        node(options=conv_options(x_scale=0, x_zero=0), x=(IMAGES[0], np.int8)),
        ANY,
    ),
    **{
        f"{name} {value}": (conv(**{name: value}), ANY)
        for name, values in {
            "channels": (0, -1, 2**31 - 1),
            "kernel_h": (0, 2**24),
            "stride_w": (0, -1),
            "dilation_h": (0, 2**31 - 1),
            "pad_top": (-1, 3, 2**31 - 1),
            "groups": (0, 5, -1),
            "bits": (0, 1, 3, 16, -8),
            "x_scale": (word(-1.0),),
            "x_zero": (128, -129, 2**31 - 1),
        }.items()
        for value in values
    },
    **{
        f"int8 out, {name} {value}": (
            node(options=conv_options(**INT8_OUT | {name: value}), outputs=(np.int8,)),
            ANY,
        )
        for name, values in {
            "out_scale": (word(-1.0),),
            "out_zero": (128, -(2**31)),
            "out_low": (-129, 200),
            "out_high": (128, -200),
        }.items()
        for value in values
    },
    **{
        f"adding, {name} {value}": (node(options=conv_options(**ADDING | {name: value}), more=[SUM]), ANY)
        for name, value in (("add_zero", 128), ("add_zero", -(2**31)))
    },
    "missing weights": (wired(_rewire(1, -1)), "weights is missing"),
    "missing add": (wired(_rewire(4, -1)), "add is missing"),
    "add out of range": (wired(_rewire(4, 999)), "Invalid tensor index"),
    "variable weights": (wired(_rewire(1, "variable")), "weights must be constant"),
    "variable scale": (wired(_rewire(2, "variable")), "scale must be constant"),
    "variable bias": (wired(_rewire(3, "variable")), "bias must be constant"),
    "short buffer": (wired(_sparse_weights), "invalidly specified"),
    "output is add": (wired(_output_is_add), "node 0 reads a tensor that it or a later node writes"),
    "linear, rank 0": (linear(shape=()), "x: expected rank 1 or more, found rank 0"),
    "linear, no rows": (linear(shape=(0, 64)), LINEAR),
    "linear, channels": (linear(shape=(2, 63)), "x: expected channels 64, found 63"),
    "linear, short": (linear(3, 64, 20, 4), "options: expected 28 bytes, found 16"),
    "linear, version": (linear(1, 64, 20, 4, 32), "expected version 3, found version 1"),
    "linear, three inputs": (linear(constants=LAYER_CONSTANTS[:2]), "expected 4 or 5 inputs and 1 output, found 3"),
    "linear, six inputs": (
        linear(constants=(*LAYER_CONSTANTS, LAYER_ZERO, LAYER_ZERO)),
        "expected 4 or 5 inputs and 1 output, found 6",
    ),
    "linear, float scale": (
        linear(constants=(LAYER_CONSTANTS[0], LAYER_CONSTANTS[1].astype("f4"), LAYER.bias)),
        "scale: expected float16, found float32",
    ),
    "linear, short scale": (
        linear(constants=(LAYER_CONSTANTS[0], LAYER_CONSTANTS[1].reshape(-1)[:-1], LAYER.bias)),
        "scale: expected 64 elements, found 63",
    ),
    "linear, short zero": (linear(constants=(*LAYER_CONSTANTS, LAYER_ZERO[:1])), "zero: expected 64 .* found 32"),
    "linear, half zero": (linear(constants=(*LAYER_CONSTANTS, LAYER_ZERO.view("f2"))), "zero: expected uint8"),
    "linear, variable zero": (linear(more=[(LAYER_ZERO.shape, np.uint8)]), "zero must be constant"),
    "linear, short bias": (linear(constants=(*LAYER_CONSTANTS[:2], LAYER.bias[:-1])), "bias: expected 20 .* found 19"),
    "linear, more out": (linear(3, 64, 33, 4, 32, 0, 0), "weights: expected 1536 elements, found 1024"),
    **{
        f"linear, {values}": (linear(*values), LINEAR)
        for values in (
            *(
                (3, 64, 0, 4, 32, 0, 0),
                (3, 64, -1, 4, 32, 0, 0),
                (3, 64, 2**31 - 1, 4, 32, 0, 0),
                (3, 64, 20, 3, 32, 0, 0),
            ),
            *(
                (3, 64, 20, 4, 0, 0, 0),
                (3, 64, 20, 4, 31, 0, 0),
                (3, 64, 20, 4, -32, 0, 0),
                (3, 64, 20, 4, 2**31 - 32, 0, 0),
            ),
            (3, 64, 20, 4, 64, 1, 0),
        )
    },
    "embedding, float ids": (embedding(x=np.float32), "ids: expected int32 or int64, found float32"),
    "embedding, int8 ids": (embedding(x=np.int8), "ids: expected int32 or int64, found int8"),
    "embedding, short": (embedding(3, 30, 64, 4), "options: expected 24 bytes, found 16"),
    "embedding, version": (embedding(0, 30, 64, 4, 32, 0), "expected version 3, found version 0"),
    "embedding, two inputs": (embedding(constants=TABLE_CONSTANTS[:1]), "expected 3 or 4 inputs and 1 output, found 2"),
    "embedding, rows": (embedding(3, 31, 64, 4, 32, 0), "weights: expected 992 elements, found 960"),
    "embedding, lanes": (embedding(3, 30, 64, 4, 32, 1), "weights: expected 1024 elements, found 960"),
    "embedding, zero": (
        embedding(constants=(*TABLE_CONSTANTS, np.zeros(59, np.uint8))),
        "zero: expected 60 elements, found 59",
    ),
    "embedding, scale": (embedding(constants=(TABLE.packed(), TABLE.scale[:-1])), "scale: expected 60 .* found 58"),
    "embedding, int8 output": (embedding(outputs=(np.int8,)), "output: expected float32, found int8"),
    **{
        f"embedding, {values}": (embedding(*values), EMBEDDING)
        for values in (
            *((3, 0, 64, 4, 32, 0), (3, -1, 64, 4, 32, 0), (3, 30, 0, 4, 32, 0), (3, 30, 2**31 - 1, 4, 32, 0)),
            *((3, 30, 64, 5, 32, 0), (3, 30, 64, 4, 0, 0), (3, 30, 64, 4, 48, 0), (3, 2**31 - 1, 64, 4, 32, 1)),
        )
    },
}


@pytest.mark.parametrize("what", REFUSED)
def test_hostile_artifacts_are_refused(worker, what):
    model, message = REFUSED[what]
    with pytest.raises(RuntimeFault, match=message):
        worker.open(model)


def test_a_tensor_that_two_nodes_write_is_never_written_beyond_its_end(worker):
    """The second resizes what the first has measured."""
    large = conv_case(out=64, int8_out=True)
    small = conv_case(int8_out=True)
    graph = Graph()
    x = graph.input((1, 4, 4, 32))
    y = add_conv(graph, x, large)
    add_conv(graph, x, small)
    graph.subgraph.operators[1].outputs[0] = y
    try:
        worker.open(graph.output(y).build())
        worker.run(by_pixel(small.x))
    except RuntimeFault as error:
        assert "output: expected 1024 elements, found 256" in str(error)  # noqa: PT017  # either way will do
    worker.open(ADD_ONE)


# What lies between may be a convolution, of gigabytes.
numbers_near = st.one_of(st.integers(-3, 40), st.integers(2**24 + 1, 2**31 - 1), st.integers(-(2**31), -1))


def altered(options: bytes):
    values = struct.unpack(f"<{len(options) // 4}i", options)
    changes = st.dictionaries(st.integers(1, len(values) - 1), numbers_near, max_size=3)
    return changes.map(lambda changes: numbers(*(changes.get(n, value) for n, value in enumerate(values))))


hostile = st.one_of(
    st.tuples(
        st.sampled_from([CONV, LINEAR, EMBEDDING]),
        st.one_of(st.binary(max_size=100), st.lists(numbers_near, max_size=25).map(lambda rest: numbers(3, *rest))),
        st.sampled_from([(IMAGES, CONSTANTS, ()), (IMAGES, CONSTANTS, (SUM,))]),
    ),
    st.tuples(st.just(CONV), altered(conv_options()), st.just((IMAGES, CONSTANTS, ()))),
    st.tuples(st.just(CONV), altered(conv_options(**ADDING)), st.just((IMAGES, CONSTANTS, (SUM,)))),
    st.tuples(
        st.just(LINEAR), altered(numbers(3, 64, 20, 4, 32, 0, 0)), st.just((((2, 64), np.float32), LAYER_CONSTANTS, ()))
    ),
    st.tuples(
        st.just(EMBEDDING), altered(numbers(3, 30, 64, 4, 32, 0)), st.just((((2, 3), np.int32), TABLE_CONSTANTS, ()))
    ),
)


@fuzz(250)
@given(what=hostile, int8=st.booleans())
def test_any_options_are_refused_or_run(worker, what, int8):
    name, options, (x, constants, more) = what
    inputs = [np.ones(shape, dtype) for shape, dtype in (x, *more)]
    try:
        worker.open(node(name, options, x, constants, (np.int8 if int8 else np.float32,), more))
        worker.run(*inputs)
    except (RuntimeFault, CallerError) as error:
        assert str(error)  # noqa: PT017  # either way will do
