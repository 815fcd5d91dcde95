"""Products and functions of rows in blocks, inside every runtime: as torch defines them, and never a crash."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ferryman.converter import quant_operators as q
from ferryman.runtime.contracts.errors import CallerError, RuntimeFault
from ferryman.runtime.native_library import native_library
from tests.support.packages import ADD_ONE
from tests.support.quantized_reference import floats_of, linear_case
from tests.support.tflite_models import Graph, numbers
from tests.unit.runtime.test_executorch_quantized import INPUT, OPS, Calls, export, run, tensor
from tests.unit.runtime.test_tflite_delegate import INTERPRETERS, LIBRARY, Worker, fuzz
from tests.unit.runtime.test_tflite_quantized import LINEAR, add_linear, word

MATMUL, FUNCTION = "ferryman.quant_matmul", "ferryman.quant_function"
KINDS = {"gelu": q.GELU, "tanh": q.GELU_TANH, "silu": q.SILU, "softmax": q.SOFTMAX, "layer norm": q.LAYER_NORM}
pytestmark = pytest.mark.skipif(native_library(LIBRARY) is None, reason=f"{LIBRARY} is not built")


@pytest.fixture(scope="module", params=["executorch", *INTERPRETERS])
def answers(request, tmp_path_factory):
    """What a runtime answers to (operator, inputs, constants, numbers)."""
    folder = tmp_path_factory.mktemp("artifacts")
    if request.param == "executorch":

        def answer(operator, inputs, constants, numbers):
            arguments = (*([INPUT] * len(inputs)), *(None if one is None else tensor(one) for one in constants))
            return run(export(Calls(getattr(OPS, operator), *arguments, *numbers), inputs), inputs, folder, 2)

        yield answer
        return
    worker = Worker(request.param, folder)

    def answer(operator, inputs, constants, numbers):
        worker.open(model(operator, inputs, constants, numbers), 2)
        return worker.run(*inputs)[0]

    yield answer
    worker.close()


def model(operator: str, inputs, constants, given) -> bytes:
    expected = definition(operator, inputs, constants, given)
    graph = Graph()
    tensors = [graph.input(one.shape, one.dtype.type) for one in inputs]
    tensors += [graph.constant(one) for one in constants if one is not None]
    y = graph.tensor(expected.shape, expected.dtype.type)
    row = inputs[0].shape[-1]
    channels = q.block_channels(row) if inputs[0].dtype == np.int8 else row
    if operator == "quant_matmul":
        graph.custom(MATMUL, numbers(3, channels, int(given[0])), tensors, [y])
    else:
        kind, epsilon, blocks = given
        graph.custom(FUNCTION, numbers(3, channels, kind, word(epsilon), int(blocks)), tensors, [y])
    return graph.output(y).build()


def definition(operator, inputs, constants, numbers) -> np.ndarray:
    return getattr(OPS, operator)(*map(tensor, inputs), *map(tensor, constants), *numbers).numpy()


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize(("leading", "channels"), [((), 64), ((3,), 40), ((2, 3), 7), ((1, 2, 2), 33)])
def test_a_product_is_exact(answers, leading, channels, blocks, turned):
    random = np.random.default_rng(0)
    a = floats_of(random, *leading, 5, channels)
    b = floats_of(random, *leading, *((17, channels) if turned else (channels, 17)))
    a = q.to_blocks(torch.from_numpy(a)).numpy() if blocks else a
    found = answers("quant_matmul", [a, b], [], [turned])
    np.testing.assert_array_equal(found, definition("quant_matmul", [a, b], [], [turned]))


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_function_is_near(answers, kind, blocks):
    random = np.random.default_rng(0)
    x = floats_of(random, 2, 3, 70) * 4
    constants = [floats_of(random, 70), floats_of(random, 70)] if kind == "layer norm" else [None, None]
    found = answers("quant_function", [x], constants, [KINDS[kind], 1e-5, blocks])
    expected = definition("quant_function", [x], constants, [KINDS[kind], 1e-5, False])
    if not blocks:
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)
        return
    assert found.dtype == np.int8
    steps = np.abs(np.pad(expected, [(0, 0), (0, 0), (0, 26)]).reshape(2, 3, 3, 32)).max(-1) / 127
    lost = np.abs(q.from_blocks(torch.tensor(found)).numpy() - expected)
    assert (lost <= steps.repeat(32, -1)[..., :70] * 0.51).all()


def test_blocks_go_from_a_function_into_a_layer(tmp_path):
    layer = linear_case(70, 20, 4, 32)
    x = floats_of(np.random.default_rng(0), 2, 3, 70)
    weight, scale, zero = map(tensor, layer.constants())
    bias = tensor(layer.bias)

    class Net(torch.nn.Module):
        def forward(self, x):
            rows = OPS.quant_function(x, None, None, q.GELU, 0.0, True)
            return OPS.quant_linear(rows, weight, scale, zero, bias, 4, 32, True)

    expected = Net()(tensor(x)).numpy()
    np.testing.assert_allclose(run(export(Net(), [x]), [x], tmp_path), expected, rtol=1e-2, atol=1e-2)
    graph = Graph()
    given = graph.input(x.shape)
    rows = graph.tensor((2, 3, q.block_bytes(70)), np.int8)
    graph.custom(FUNCTION, numbers(3, 70, q.GELU, 0, 1), [given], [rows])
    y = add_linear(graph, rows, layer, x.shape)
    for name in INTERPRETERS:
        worker = Worker(name, tmp_path)
        worker.open(graph.output(y).build() if not graph.subgraph.outputs else graph.build())
        np.testing.assert_allclose(worker.run(x)[0], expected, rtol=1e-2, atol=1e-2)
        worker.close()


# Hostile artifacts.

A, B = ((3, 64), np.float32), ((64, 5), np.float32)
X, ONES = ((3, 64), np.float32), np.ones(64, np.float32)


def node(name, options, inputs, constants=(), output=np.float32):
    graph = Graph()
    tensors = [*(graph.input(*one) for one in inputs), *map(graph.constant, constants)]
    graph.output(graph.tensor((1, 1), output))
    graph.custom(name, options, tensors, graph.subgraph.outputs)
    return graph.build()


def matmul(*values, inputs=(A, B), **rest):
    return node(MATMUL, numbers(*(values or (3, 64, 0))), inputs, **rest)


def function(*values, x=X, **rest):
    return node(FUNCTION, numbers(*(values or (3, 64, q.GELU, 0, 0))), [x], **rest)


NORM = (3, 64, q.LAYER_NORM, word(1e-5), 0)
REFUSED = {
    "product, no inputs": (matmul(inputs=()), "expected 2 inputs and 1 output, found 0 and 1|"),
    "product, one input": (matmul(inputs=(A,)), "expected 2 inputs and 1 output, found 1 and 1"),
    "product, version": (matmul(1, 64, 0), "expected version 3, found version 1"),
    "product, short": (matmul(3, 64), "options: expected 12 bytes, found 8"),
    "product, channels": (matmul(3, 63, 0), "x: expected channels 63, found 64"),
    "product, other channels": (matmul(inputs=(A, ((63, 5), np.float32))), "x: expected channels 64, found 63"),
    "product, turned": (matmul(3, 64, 1), "x: expected channels 64, found 5"),
    "product, rank": (matmul(inputs=(A, ((1, 64, 5), np.float32))), "the same leading dimensions"),
    "product, rank 1": (matmul(inputs=(((64,), np.float32), ((64,), np.float32))), "the same leading dimensions"),
    "product, batch": (
        matmul(inputs=(((2, 3, 64), np.float32), ((3, 64, 5), np.float32))),
        "the same leading dimensions",
    ),
    "product, int32": (matmul(inputs=(((3, 64), np.int32), B)), "x: expected float32, or int8 in blocks, found int32"),
    "product, int8 b": (matmul(inputs=(A, ((64, 5), np.int8))), "b: expected float32, found int8"),
    "product, bytes": (matmul(inputs=(((3, 64), np.int8), B)), "x: expected channels 64, found 56"),
    "product, no row": (matmul(inputs=(((3, 36 + 3), np.int8), B)), "x: expected channels 64, found 0"),
    "product, nothing": (matmul(inputs=(((0, 64), np.float32), B)), MATMUL),
    "product, int8 output": (matmul(output=np.int8), "output: expected float32, found int8"),
    "function, no input": (node(FUNCTION, numbers(3, 64, 0, 0, 0), []), "expected 1 inputs and 1 output|"),
    "function, kind": (function(3, 64, 5, 0, 0), FUNCTION),
    "function, negative kind": (function(3, 64, -1, 0, 0), FUNCTION),
    "function, channels": (function(3, 32, 0, 0, 0), "x: expected channels 32, found 64"),
    "function, epsilon": (function(*NORM[:3], word(np.nan), 0, constants=[ONES, ONES]), "epsilon is not finite"),
    "function, negative epsilon": (function(*NORM[:3], word(-1.0), 0, constants=[ONES, ONES]), FUNCTION),
    "function, weights": (function(constants=[ONES, ONES]), "expected 1 inputs and 1 output, found 3"),
    "norm, no weights": (function(*NORM), "expected 3 inputs and 1 output, found 1"),
    "norm, short bias": (function(*NORM, constants=[ONES, ONES[:3]]), "bias: expected 64 elements, found 3"),
    "norm, half": (function(*NORM, constants=[ONES.astype("f2"), ONES]), "weight: expected float32, found float16"),
    "function, int8": (function(x=((3, 64), np.int8)), "x: expected float32, found int8"),
    "function, blocks": (function(3, 64, 0, 0, 1), "output: expected int8, found float32"),
    "function, rank 0": (function(x=((), np.float32)), "x: expected rank 1 or more"),
}


@pytest.fixture(scope="module", params=INTERPRETERS)
def worker(request, tmp_path_factory):
    worker = Worker(request.param, tmp_path_factory.mktemp("artifacts"))
    worker.open(ADD_ONE)
    yield worker
    worker.close()


@pytest.mark.parametrize("what", REFUSED)
def test_hostile_artifacts_are_refused(worker, what):
    artifact, message = REFUSED[what]
    with pytest.raises(RuntimeFault, match=message):
        worker.open(artifact)


near = st.one_of(st.integers(-3, 70), st.integers(2**24 + 1, 2**31 - 1), st.integers(-(2**31), -1))


@fuzz(150)
@given(
    name=st.sampled_from([MATMUL, FUNCTION, LINEAR]),
    rest=st.lists(near, max_size=6),
    int8=st.booleans(),
    norm=st.booleans(),
    shape=st.lists(st.sampled_from([0, 1, 3, 36, 64, 72]), max_size=4),
)
def test_any_options_are_refused_or_run(worker, name, rest, int8, norm, shape):
    x = (tuple(shape), np.int8 if int8 else np.float32)
    inputs = [x, ((*shape[:-2], *shape[:-3:-1]), np.float32)] if name == MATMUL else [x]
    try:
        worker.open(node(name, numbers(3, *rest), inputs, [ONES, ONES] if norm else [], np.float32))
        worker.run(*(np.ones(*one) for one in inputs))
    except (RuntimeFault, CallerError) as error:
        assert str(error)  # noqa: PT017  # either way will do


F4 = np.float32
EXECUTORCH = {
    "ranks": ("quant_matmul", [np.ones((3, 64), F4), np.ones((1, 64, 5), F4)], [False], "as many dimensions"),
    "batch": ("quant_matmul", [np.ones((2, 3, 64), F4), np.ones((3, 64, 5), F4)], [False], "leading dimensions"),
    "channels": ("quant_matmul", [np.ones((3, 64), F4), np.ones((63, 5), F4)], [False], "b must have a's channels"),
    "a of int32": ("quant_matmul", [np.ones((3, 64), "i4"), np.ones((64, 5), F4)], [False], "float32, or int8"),
    "b of int8": ("quant_matmul", [np.ones((3, 64), F4), np.ones((64, 5), "i1")], [False], "b must be a float32"),
    "no row": ("quant_matmul", [np.ones((3, 39), "i1"), np.ones((35, 5), F4)], [False], "another number of bytes"),
    "kind": ("quant_function", [np.ones((3, 64), F4), None, None], [9, 0.0, False], "ferryman::quant_function"),
    "epsilon": ("quant_function", [np.ones((3, 64), F4), ONES, ONES], [q.LAYER_NORM, -1.0, False], "epsilon"),
    "no bias": ("quant_function", [np.ones((3, 64), F4), ONES, None], [q.LAYER_NORM, 0.1, False], "of layer norms"),
    "weights": ("quant_function", [np.ones((3, 64), F4), ONES, ONES], [q.GELU, 0.1, False], "of layer norms alone"),
    "short": ("quant_function", [np.ones((3, 64), F4), ONES, ONES[:9]], [q.LAYER_NORM, 0.1, False], "one a channel"),
    "x of int8": ("quant_function", [np.ones((3, 64), "i1"), None, None], [0, 0.0, False], "x must be a float32"),
}


class Anything(torch.nn.Module):
    """An operator that is exported for good inputs; the artifact is asked with others."""

    def __init__(self, operator, numbers) -> None:
        super().__init__()
        self.operator, self.numbers = operator, numbers

    def forward(self, *inputs):
        return self.operator(*inputs, *self.numbers)


@pytest.mark.parametrize("what", EXECUTORCH)
def test_hostile_arguments_are_refused(what, tmp_path):
    operator, inputs, numbers, message = EXECUTORCH[what]
    arguments = [None if one is None else INPUT for one in inputs]
    given = [one for one in inputs if one is not None]
    artifact = export(Calls(getattr(OPS, operator), *arguments, *numbers), given)
    with pytest.raises(RuntimeFault, match=message):
        run(artifact, given, tmp_path)
