"""ferryman's operators inside both TFLite interpreters, in processes of their own: a crash there fails a test here."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ferryman.converter.bits import pack_signs, pack_weights, unpack_signs
from ferryman.runtime.contracts.errors import CallerError, DeviceError, RuntimeCrash, RuntimeFault
from ferryman.runtime.isolated import IsolatedSession
from ferryman.runtime.native_library import native_library
from ferryman.runtime.sessions import tflite
from ferryman.runtime.worker import Open, Opened
from tests.support import tflite_models as models
from tests.support.interpreters import python_for
from tests.support.kernels import BITS, FIRST, REALS, SIGNS, Case, packed, signs
from tests.support.packages import ADD_ONE
from tests.support.tflite_models import CONV, LINEAR, TREE, Graph, add_conv, add_linear, channels_last, numbers
from tests.unit.runtime.native.test_kernels import cases
from tests.unit.runtime.native.test_tree import alike

INTERPRETERS = ("ai-edge-litert", "tflite-runtime")
LIBRARY = "libferryman_tflite.so"
pytestmark = pytest.mark.skipif(native_library(LIBRARY) is None, reason=f"{LIBRARY} is not built")


class Worker:
    """An interpreter in another process, which opens one artifact after another."""

    def __init__(self, interpreter: str, folder: Path) -> None:
        self.interpreter = interpreter
        self.folder = folder
        self._count = 0
        self._session: IsolatedSession | None = None

    def open(self, model: bytes, threads: int = 1) -> None:
        self._count += 1
        path = self.folder / f"{self._count}.tflite"  # the one before is still mapped
        path.write_bytes(model)
        try:
            if self._session is None:
                self._session = IsolatedSession(
                    path, "tflite", interpreter=self.interpreter, threads=threads, python=python_for(self.interpreter)
                )
            else:
                question = Open(artifact=str(path), runtime="tflite", interpreter=self.interpreter, threads=threads)
                self._session.signature = self._session._ask(question, Opened).signature
        except RuntimeCrash:
            self.close()
            raise
        finally:
            path.unlink()

    def run(self, *inputs: np.ndarray) -> list[np.ndarray]:
        try:
            return self._session.run([np.asarray(x, order="C") for x in inputs])
        except RuntimeCrash:
            self.close()
            raise

    def maps(self) -> str:
        return Path(f"/proc/{self._session._process.pid}/maps").read_text()

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
        self._session = None


@pytest.fixture(scope="module", params=INTERPRETERS)
def worker(request, tmp_path_factory):
    worker = Worker(request.param, tmp_path_factory.mktemp("artifacts"))
    worker.open(ADD_ONE)
    yield worker
    worker.close()


def fuzz(examples):
    return settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def given_to(case: Case, kind: int) -> np.ndarray:
    """What the operator gets."""
    return packed(case.x) if kind == BITS else case.x.transpose(0, 2, 3, 1)


def conv_model(case: Case, kind: int, *, bits_out: bool = False, dynamic: bool = False, tree: bool = False) -> bytes:
    graph = Graph()
    shape, dtype = channels_last(case.x, kind)
    x = graph.input(shape, dtype, dynamic=[-1] * 4 if dynamic else None)
    return graph.output(add_conv(graph, x, case, kind, bits_out=bits_out, tree=tree)).build()


def simple_case(channels=32, out=16, size=4, batch=1, seed=0) -> Case:
    random = np.random.default_rng(seed)
    return Case(
        x=random.standard_normal((batch, channels, size, size)).astype(np.float32),
        weight=random.standard_normal((out, channels, 3, 3)).astype(np.float32),
        scale=random.standard_normal(out).astype(np.float32),
        bias=random.standard_normal(out).astype(np.float32),
        padding=(1, 1, 1, 1),
        threshold=random.integers(-9, 9, out, dtype=np.int32),
    )


@fuzz(60)
@given(case=cases(), kind=st.sampled_from([SIGNS, BITS]), threads=st.sampled_from([1, 3]))
def test_convolutions_equal_the_reference_to_the_bit(worker, case, kind, threads):
    worker.open(conv_model(case, kind), threads)
    (found,) = worker.run(given_to(case, kind))
    np.testing.assert_array_equal(found.transpose(0, 3, 1, 2), case.expected())
    worker.open(conv_model(case, kind, bits_out=True), threads)
    (words,) = worker.run(given_to(case, kind))
    expected = case.dots() >= case.threshold[:, None, None]
    np.testing.assert_array_equal(words, pack_signs(expected.transpose(0, 2, 3, 1)))


@pytest.mark.parametrize(
    ("kind", "bits_out"), [(SIGNS, False), (SIGNS, True), (BITS, False), (BITS, True), (REALS, False)]
)
def test_floats_may_have_their_channels_first(worker, kind, bits_out):
    case = simple_case(channels=40, out=24, size=7, batch=2)
    if kind == REALS:
        case = replace(case, x=np.round(case.x * 9))
    x = packed(case.x) if kind == BITS else case.x
    graph = Graph()
    constants = [graph.constant(array) for array in models.parameters(case, bits_out=bits_out)]
    options = numbers(*models.conv_numbers(case, kind, FIRST, bits_out=bits_out))
    y = graph.tensor((2, 7, 7, 1) if bits_out else (2, 24, 7, 7), np.int32 if bits_out else np.float32)
    graph.custom(CONV, options, [graph.input(x.shape, x.dtype.type), *constants], [y])
    worker.open(graph.output(y).build())
    (found,) = worker.run(x)
    dots = case.dots(real=kind == REALS)
    if bits_out:
        expected = pack_signs((dots >= case.threshold[:, None, None]).transpose(0, 2, 3, 1))
    else:
        expected = dots.astype(np.float32) * case.scale[:, None, None] + case.bias[:, None, None]
    np.testing.assert_array_equal(found, expected)


@fuzz(40)
@given(case=alike(), kind=st.sampled_from([SIGNS, BITS]), threads=st.sampled_from([1, 3]))
def test_trees_equal_the_reference_to_the_bit(worker, case, kind, threads):
    worker.open(conv_model(case, kind, tree=True), threads)
    (found,) = worker.run(given_to(case, kind))
    np.testing.assert_array_equal(found.transpose(0, 3, 1, 2), case.expected())
    worker.open(conv_model(case, kind, bits_out=True, tree=True), threads)
    (words,) = worker.run(given_to(case, kind))
    expected = case.dots() >= case.threshold[:, None, None]
    np.testing.assert_array_equal(words, pack_signs(expected.transpose(0, 2, 3, 1)))


@fuzz(30)
@given(case=cases(), threads=st.sampled_from([1, 3]))
def test_real_activations_are_exact_on_integers(worker, case, threads):
    x = np.nan_to_num(np.clip(np.round(case.x * 9), -99, 99), nan=3.0)
    whole = replace(case, x=x.astype(np.float32))
    worker.open(conv_model(whole, REALS), threads)
    (found,) = worker.run(given_to(whole, REALS))
    expected = whole.dots(real=True).astype(np.float32) * case.scale[:, None, None] + case.bias[:, None, None]
    np.testing.assert_array_equal(found.transpose(0, 3, 1, 2), expected)


@fuzz(40)
@given(
    leading=st.lists(st.integers(1, 4), max_size=4),
    channels=st.integers(1, 130),
    out=st.integers(1, 70),
    kind=st.sampled_from([SIGNS, BITS]),
    bits_out=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_linear_layers_take_any_rank(worker, leading, channels, out, kind, bits_out, seed):
    random = np.random.default_rng(seed)
    case = replace(
        simple_case(channels, out, seed=seed),
        x=random.standard_normal((int(np.prod(leading)), channels, 1, 1)).astype(np.float32),
        weight=random.standard_normal((out, channels, 1, 1)).astype(np.float32),
        padding=(0, 0, 0, 0),
    )
    x = given_to(case, kind).reshape(*leading, -1)
    graph = Graph()
    y = add_linear(graph, graph.input(x.shape, x.dtype.type), leading, case, kind, bits_out=bits_out)
    worker.open(graph.output(y).build())
    (found,) = worker.run(x)
    if bits_out:
        expected = pack_signs((case.dots() >= case.threshold[:, None, None])[:, :, 0, 0])
    else:
        expected = case.expected()[:, :, 0, 0]
    np.testing.assert_array_equal(found, expected.reshape(*leading, -1))


@pytest.mark.parametrize("channels", [32, 40])
def test_layers_hand_bits_to_each_other(worker, channels):
    first = simple_case(channels=16, out=channels)
    between = first.dots() >= first.threshold[:, None, None]
    second = replace(simple_case(channels, 24, seed=1), x=signs(between - 0.5).astype(np.float32))
    graph = Graph()
    x = graph.input(*channels_last(first.x))
    bits = add_conv(graph, x, first, bits_out=True)
    worker.open(graph.output(add_conv(graph, bits, second, BITS), bits).build())
    found, words = worker.run(given_to(first, SIGNS))
    np.testing.assert_array_equal(found.transpose(0, 3, 1, 2), second.expected())
    np.testing.assert_array_equal(unpack_signs(words, channels).transpose(0, 3, 1, 2), between)


def test_threads_change_nothing(worker):
    case = simple_case(channels=96, out=80, size=24, batch=2)
    for kind in (SIGNS, REALS):
        found = []
        for threads in (1, 3):
            worker.open(conv_model(case, kind), threads)
            found += [worker.run(given_to(case, kind))[0] for _ in range(20)]
        assert all(np.array_equal(again, found[0]) for again in found)


def test_the_batch_may_change_between_runs(worker):
    case = simple_case()
    worker.open(conv_model(case, SIGNS, dynamic=True))
    for batch in (1, 5, 2, 1):
        for size in (4, 9):
            other = replace(case, x=simple_case(size=size, batch=batch, seed=batch).x)
            (found,) = worker.run(given_to(other, SIGNS))
            np.testing.assert_array_equal(found.transpose(0, 3, 1, 2), other.expected())


@pytest.mark.parametrize("channels", [31, 33])
def test_a_size_that_does_not_fit_is_an_error_and_the_next_that_does_runs(worker, channels):
    case = simple_case()
    worker.open(conv_model(case, SIGNS, dynamic=True))
    for _ in range(2):
        with pytest.raises(RuntimeFault, match=f"x: expected channels 32, found {channels}"):
            worker.run(np.zeros((1, 4, 4, channels), np.float32))
        (found,) = worker.run(given_to(case, SIGNS))
        np.testing.assert_array_equal(found.transpose(0, 3, 1, 2), case.expected())


def test_a_shape_known_only_when_it_runs(worker):
    case = simple_case()
    graph = Graph()
    x, shape = graph.input((16 * 32,), dynamic=[-1]), graph.input((4,), np.int32)
    worker.open(graph.output(add_conv(graph, graph.reshape(x, shape, 4), case)).build())
    for batch, size in ((1, 4), (3, 4), (1, 9), (1, 4)):
        other = replace(case, x=simple_case(size=size, batch=batch, seed=size).x)
        flat = given_to(other, SIGNS).reshape(-1)
        (found,) = worker.run(flat, np.array([batch, size, size, 32], np.int32))
        np.testing.assert_array_equal(found.transpose(0, 3, 1, 2), other.expected())
        with pytest.raises(RuntimeFault, match="x: expected channels 32, found 16"):
            worker.run(flat, np.array([batch, size, size * 2, 16], np.int32))


def mixed() -> tuple[bytes, np.ndarray, np.ndarray]:
    """Float convolution, two of ours, float convolution; whole numbers, so that every sum is exact."""
    random = np.random.default_rng(3)
    x = random.integers(-4, 5, (1, 8, 8, 3)).astype(np.float32)
    before = random.integers(-3, 4, (40, 1, 1, 3)).astype(np.float32)
    after = random.integers(-3, 4, (5, 1, 1, 24)).astype(np.float32)
    one, two = (
        replace(case, scale=np.ones_like(case.scale), bias=np.full_like(case.bias, 0.5))
        for case in (simple_case(40, 32, 8), simple_case(32, 24, 8, seed=1))
    )
    bias = np.full(40, 0.5, np.float32)
    graph = Graph()
    y = graph.float_conv(graph.input(x.shape), before, bias, (1, 8, 8, 40))
    y = add_conv(graph, y, one)
    y = add_conv(graph, y, two)
    graph.output(graph.float_conv(y, after, bias[:5], (1, 8, 8, 5)))
    one = replace(one, x=np.einsum("bhwc,oc->bohw", x, before[:, 0, 0]) + np.float32(0.5))
    two = replace(two, x=one.expected())
    expected = np.einsum("bchw,oc->bhwo", two.expected(), after[:, 0, 0]) + np.float32(0.5)
    return graph.build(), x, expected


def test_float_operators_around_ours_agree(worker):
    model, x, expected = mixed()
    worker.open(model)
    np.testing.assert_array_equal(worker.run(x)[0], expected)


OPERATORS = """
import importlib, json, sys
name, library, model = sys.argv[1:]
module = importlib.import_module(name)
delegate = module.load_delegate(library, {"num_threads": 2})
interpreter = module.Interpreter(model_path=model, experimental_delegates=[delegate])
interpreter.allocate_tensors()
print(json.dumps([[op["op_name"], [int(t) for t in op["outputs"]]] for op in interpreter._get_ops_details()]))
"""


def in_interpreter(interpreter: str, code: str, *arguments: str) -> str:
    """Run a program against an interpreter's Python module; what it prints."""
    python = str(python_for(interpreter) or sys.executable)
    command = [python, "-c", code, tflite._MODULES[interpreter], str(native_library(LIBRARY)), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_xnnpack_takes_what_is_not_ours(interpreter, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(mixed()[0])
    operators = json.loads(in_interpreter(interpreter, OPERATORS, str(path)))
    names = [name for name, _ in operators]
    assert names == ["CONV_2D", CONV, CONV, "CONV_2D", "DELEGATE", "DELEGATE", "DELEGATE", "DELEGATE"]
    assert sorted(out for _, out in operators[:4]) == sorted(out for _, out in operators[4:])


DESTROYED_FIRST = """
import importlib, sys
name, library, model = sys.argv[1:]
module = importlib.import_module(name)
delegates = [module.load_delegate(library, {"num_threads": 2}) for _ in range(2)]
interpreters = [module.Interpreter(model_path=model, experimental_delegates=[delegate]) for delegate in delegates]
for interpreter in interpreters:
    interpreter.allocate_tensors()
    interpreter.invoke()
delegates[0].__del__()
interpreters[1].invoke()
del interpreters[0]
interpreters[0].invoke()
print("alive")
"""


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_a_delegate_destroyed_before_its_interpreter_does_no_harm(interpreter, tmp_path):
    """The garbage collector may take them in any order."""
    path = tmp_path / "model.tflite"
    path.write_bytes(conv_model(simple_case(), SIGNS))
    assert in_interpreter(interpreter, DESTROYED_FIRST, str(path)) == "alive\n"


FORKED = """
import importlib, os, signal, sys, time
import numpy as np
name, library, model = sys.argv[1:]
module = importlib.import_module(name)
delegate = module.load_delegate(library, {"num_threads": 3})
interpreter = module.Interpreter(model_path=model, experimental_delegates=[delegate], num_threads=1)
interpreter.allocate_tensors()
x = np.random.default_rng(0).standard_normal(interpreter.get_input_details()[0]["shape"]).astype(np.float32)

def run():
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])

expected = run()
child = os.fork()
if child == 0:
    assert np.array_equal(run(), expected)
    del interpreter, delegate
    sys.exit(7)
for _ in range(1200):
    if (ended := os.waitpid(child, os.WNOHANG))[0]:
        print(os.waitstatus_to_exitcode(ended[1]), np.array_equal(run(), expected))
        break
    time.sleep(0.05)
else:
    os.kill(child, signal.SIGKILL)
    print("hangs")
"""


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_a_forked_process_runs_and_ends_without_the_threads(interpreter, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(conv_model(simple_case(size=24), SIGNS))
    assert in_interpreter(interpreter, FORKED, str(path)) == "7 True\n"


THREADS = """
import importlib, json, sys
name, library, options = sys.argv[1:]
try:
    importlib.import_module(name).load_delegate(library, json.loads(options))
    print("loaded")
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize("interpreter", INTERPRETERS)
@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({}, "loaded"),
        ({"num_threads": "4"}, "loaded"),
        *(
            ({"num_threads": bad}, f"num_threads: expected 1 to 1024, found '{bad}'")
            for bad in ("0", "-1", "", "2x", "1e9")
        ),
        ({"num_threads": "99999999999999999999"}, "num_threads: expected 1 to 1024"),
        ({"threads": "1"}, "options: expected num_threads, found 'threads'"),
    ],
)
def test_options_of_the_delegate(interpreter, options, answer):
    assert answer in in_interpreter(interpreter, THREADS, json.dumps(options))


def test_an_artifact_without_our_operators_does_not_load_the_library(tmp_path):
    worker = Worker("ai-edge-litert", tmp_path)
    try:
        worker.open(ADD_ONE)
        assert LIBRARY not in worker.maps()
        worker.open(conv_model(simple_case(), SIGNS))
        assert LIBRARY in worker.maps()
    finally:
        worker.close()


def test_sessions_close_in_any_order(tmp_path):
    case = simple_case()
    path = tmp_path / "model.tflite"
    path.write_bytes(conv_model(case, SIGNS))
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        sessions = [tflite.open_session(path, interpreter="ai-edge-litert", threads=2) for _ in order]
        for n in order:
            (found,) = sessions[n].run([given_to(case, SIGNS)])
            np.testing.assert_array_equal(found.transpose(0, 3, 1, 2), case.expected())
            sessions[n].close()
            sessions[n].close()


def test_a_missing_library_is_the_devices_fault(tmp_path, monkeypatch):
    path = tmp_path / "model.tflite"
    path.write_bytes(conv_model(simple_case(), SIGNS))
    monkeypatch.setattr(tflite, "native_library", lambda _: None)
    with pytest.raises(DeviceError, match=r"libferryman_tflite\.so is not installed; install ferryman with pip"):
        tflite.open_session(path, interpreter="ai-edge-litert", threads=1)
    broken = tmp_path / LIBRARY
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(tflite, "native_library", lambda _: broken)
    with pytest.raises(DeviceError, match="does not load"):
        tflite.open_session(path, interpreter="ai-edge-litert", threads=1)


# Hostile artifacts.

CASE = simple_case()
CONV_NUMBERS = models.conv_numbers(CASE)
WEIGHTS, SCALE, BIAS = models.parameters(CASE)
THRESHOLD = CASE.threshold
TREE_WORDS = models.parameters(CASE, tree=True)[0]


def node(
    name: str = CONV,
    options: bytes = numbers(*CONV_NUMBERS),
    x: tuple[tuple[int, ...], type] = ((1, 4, 4, 32), np.float32),
    constants: tuple[np.ndarray, ...] = (WEIGHTS, SCALE, BIAS),
    outputs: tuple[type, ...] = (np.float32,),
) -> bytes:
    """One node of anything."""
    graph = Graph()
    inputs = [graph.input(*x), *(graph.constant(array) for array in constants)]
    graph.output(*(graph.tensor((1, 1, 1, 1), dtype) for dtype in outputs))
    graph.custom(name, options, inputs, graph.subgraph.outputs)
    return graph.build()


def with_numbers(**changes: int) -> bytes:
    names = ["version", *(name for name, _ in CASE.conv()._fields_[3:])]
    values = dict(zip(names, CONV_NUMBERS, strict=True)) | changes
    return numbers(*values.values())


def linear(*values: int, shape: tuple[int, ...] = (2, 32)) -> bytes:
    weights = pack_weights(np.ones((16, 32, 1, 1)), 1)
    return node(LINEAR, numbers(*values), (shape, np.float32), (weights, SCALE, BIAS))


def wired(change, *, tree: bool = False) -> bytes:
    """The convolution, its graph changed before it is written."""
    graph = Graph()
    graph.output(add_conv(graph, graph.input((1, 4, 4, 32)), CASE, tree=tree))
    change(graph)
    return graph.build()


def _variable_weights(graph):
    operator = graph.subgraph.operators[0]
    operator.inputs[1] = graph.input(WEIGHTS.shape, np.int32)


def _missing_weights(graph):
    graph.subgraph.operators[0].inputs[1] = -1


def _missing_output(graph):
    graph.subgraph.operators[0].outputs[0] = -1


def _weights_out_of_range(graph):
    graph.subgraph.operators[0].inputs[1] = 999


def _sparse_weights(graph):
    """A constant whose bytes are fewer than its shape says."""
    tensor = graph.subgraph.tensors[graph.subgraph.operators[0].inputs[1]]
    graph.buffers[tensor.buffer].data = np.zeros(64, np.uint8)
    sparsity = models.schema.SparsityParametersT()
    sparsity.traversalOrder, sparsity.dimMetadata = [], []
    tensor.sparsity = sparsity


def _short_weights(graph):
    tensor = graph.subgraph.tensors[graph.subgraph.operators[0].inputs[1]]
    graph.buffers[tensor.buffer].data = np.zeros(64, np.uint8)


def _output_is_x(graph):
    operator = graph.subgraph.operators[0]
    operator.outputs[0] = operator.inputs[0]


def _graph_is_a_circle(graph):
    _output_is_x(graph)
    graph.subgraph.outputs[0] = graph.subgraph.operators[0].outputs[0]


def _two_in_a_circle(graph):
    operator = graph.subgraph.operators[0]
    between = graph.tensor((1, 4, 4, 32))
    graph.custom(CONV, numbers(*CONV_NUMBERS), [operator.outputs[0], *operator.inputs[1:]], [between])
    operator.inputs[0] = between


def _output_is_constant(graph):
    operator = graph.subgraph.operators[0]
    operator.outputs[0] = graph.subgraph.outputs[0] = graph.constant(np.zeros((1, 4, 4, 16), np.float32))


def _output_is_scale(graph):
    operator = graph.subgraph.operators[0]
    operator.outputs[0] = operator.inputs[2]


def _scale_is_bias(graph):
    """Not an error: the interpreter's own list of a node's inputs leaves doubles out."""
    operator = graph.subgraph.operators[0]
    operator.inputs[3] = operator.inputs[2]


def _tree(changes: dict[int, int], length: int | None = None, **numbers: int) -> bytes:
    """A node whose weights are a tree, some of its words changed."""
    words = TREE_WORDS.copy()
    for place, value in changes.items():
        words[place] = value
    return node(TREE, with_numbers(**numbers), constants=(words[:length], SCALE, BIAS))


def _variable_tree(graph):
    operator = graph.subgraph.operators[0]
    operator.inputs[1] = graph.input(TREE_WORDS.shape, np.int32)


REFUSED = {
    "no options": (node(options=b""), "options: expected 72 bytes, found 0"),
    "three bytes": (node(options=b"\1\0\0"), "options: expected 72 bytes, found 3"),
    "short": (node(options=numbers(*CONV_NUMBERS[:-1])), "options: expected 72 bytes, found 68"),
    "long": (node(options=numbers(*CONV_NUMBERS, 0)), "options: expected 72 bytes, found 76"),
    "odd": (node(options=numbers(*CONV_NUMBERS) + b"\0"), "options: expected 72 bytes, found 73"),
    "huge options": (node(options=numbers(models.VERSION, *[7] * 100_000)), "options: expected 72 bytes, found 400004"),
    "version 0": (node(options=with_numbers(version=0)), "options: expected version 2, found version 0"),
    "version 3": (node(options=numbers(3, *CONV_NUMBERS, 5)), "options: expected version 2, found version 3"),
    "unknown operator": (node("ferryman.fly"), "no operator ferryman.fly; install a later ferryman"),
    "longer name": (node(CONV + "2"), "no operator ferryman.binary_conv2d2"),
    "only the prefix": (node("ferryman."), "no operator ferryman."),
    "no inputs": (
        wired(lambda g: g.subgraph.operators[0].inputs.clear()),
        "expected 4 inputs and 1 output, found 0 and 1",
    ),
    "three inputs": (node(constants=(WEIGHTS, SCALE)), "expected 4 inputs and 1 output, found 3 and 1"),
    "five inputs": (node(constants=(WEIGHTS, SCALE, BIAS, BIAS)), "expected 4 inputs and 1 output, found 5 and 1"),
    "two outputs": (node(outputs=(np.float32, np.float32)), "expected 4 inputs and 1 output, found 4 and 2"),
    "bits, scale and bias": (node(options=with_numbers(bits_out=1)), "expected 3 inputs and 1 output, found 4 and 1"),
    "bits, float threshold": (
        node(options=with_numbers(bits_out=1), constants=(WEIGHTS, SCALE)),
        "threshold: expected int32, found float32",
    ),
    "bits, float output": (
        node(options=with_numbers(bits_out=1), constants=(WEIGHTS, THRESHOLD)),
        "output: expected int32, found float32",
    ),
    "int output": (node(outputs=(np.int32,)), "output: expected float32, found int32"),
    "int x": (node(x=((1, 4, 4, 32), np.int32)), "x: expected float32, found int32"),
    "float x for bits": (node(options=with_numbers(input=BITS)), "x: expected int32, found float32"),
    "words": (node(options=with_numbers(input=BITS), x=((1, 4, 4, 2), np.int32)), "x: expected words 1, found 2"),
    "float weights": (
        node(constants=(WEIGHTS.view(np.float32), SCALE, BIAS)),
        "weights: expected int32, found float32",
    ),
    "int scale": (node(constants=(WEIGHTS, THRESHOLD, BIAS)), "scale: expected float32, found int32"),
    "int bias": (node(constants=(WEIGHTS, SCALE, THRESHOLD)), "bias: expected float32, found int32"),
    "rank 3": (node(x=((4, 4, 32), np.float32)), "x: expected rank 4, found rank 3"),
    "rank 5": (node(x=((1, 1, 4, 4, 32), np.float32)), "x: expected rank 4, found rank 5"),
    "rank 0": (node(x=((), np.float32)), "x: expected rank 4, found rank 0"),
    "no batch": (node(x=((0, 4, 4, 32), np.float32)), r"must be 1 to 2\^24"),
    "channels": (node(x=((1, 4, 4, 64), np.float32)), "x: expected channels 32, found 64"),
    "few weights": (node(constants=(WEIGHTS[:, :, :-1], SCALE, BIAS)), "weights: expected 144 elements, found 128"),
    "one weight": (node(constants=(np.zeros(1, np.int32), SCALE, BIAS)), "weights: expected 144 elements, found 1"),
    "many weights": (
        node(constants=(np.zeros(9999, np.int32), SCALE, BIAS)),
        "weights: expected 144 elements, found 9999",
    ),
    "short scale": (node(constants=(WEIGHTS, SCALE[:-1], BIAS)), "scale: expected 16 elements, found 15"),
    "short bias": (node(constants=(WEIGHTS, SCALE, BIAS[:1])), "bias: expected 16 elements, found 1"),
    "short threshold": (
        node(options=with_numbers(bits_out=1), constants=(WEIGHTS, THRESHOLD[:3]), outputs=(np.int32,)),
        "threshold: expected 16 elements, found 3",
    ),
    "no channels": (node(options=with_numbers(channels=0)), r"must be 1 to 2\^24"),
    "huge channels": (node(options=with_numbers(channels=2**31 - 1)), r"must be 1 to 2\^24"),
    "huge out": (node(options=with_numbers(out_channels=2**24)), "expected 150994944 elements, found 144"),
    "huge kernel": (node(options=with_numbers(kernel_h=2**24)), "not depend on more"),
    "huge padding": (node(options=with_numbers(pad_top=2**24, pad_left=2**24)), "padding must be less"),
    "negative stride": (node(options=with_numbers(stride_w=-1)), r"must be 1 to 2\^24"),
    "groups": (node(options=with_numbers(groups=5)), "groups must divide"),
    "padding value": (node(options=with_numbers(pad_value=7)), "padding's value"),
    "input": (node(options=with_numbers(input=9)), "unknown kind"),
    "bits_out": (
        node(options=with_numbers(bits_out=2), constants=(WEIGHTS, THRESHOLD), outputs=(np.int32,)),
        "unknown kind",
    ),
    "variable weights": (wired(_variable_weights), "weights must be constant"),
    "missing weights": (wired(_missing_weights), "weights is missing"),
    "missing output": (wired(_missing_output), "output is missing"),
    "weights out of range": (wired(_weights_out_of_range), "Invalid tensor index"),
    "sparse weights": (wired(_sparse_weights), "weights: expected 144 elements, found 16|parsity"),
    "short buffer": (wired(_short_weights), "invalidly specified"),
    "output is x": (wired(_output_is_x), "node 0 reads a tensor that it or a later node writes"),
    "output is x, and the graph's": (wired(_graph_is_a_circle), "node 0 reads a tensor that it or a later node writes"),
    "two wait for each other": (wired(_two_in_a_circle), "node 0 reads a tensor that it or a later node writes"),
    "output is constant": (wired(_output_is_constant), "constant"),
    "output is scale": (wired(_output_is_scale), "node 0 reads a tensor that it or a later node writes"),
    "tree, plain weights": (node(TREE), "the weights are no tree"),
    "plain, tree's weights": (node(constants=(TREE_WORDS, SCALE, BIAS)), "weights: expected 144 elements"),
    "tree, one word": (_tree({}, 1), "the weights are no tree"),
    "tree, float weights": (
        node(TREE, constants=(TREE_WORDS.view(np.float32), SCALE, BIAS)),
        "weights: expected int32, found float32",
    ),
    "tree, short": (_tree({}, -1), "another length than the header asks for"),
    "tree, kind": (_tree({0: 7}), "no tree of a kind known here"),
    "tree, other channels": (_tree({1: 17}), "other numbers of output channels"),
    "tree, order": (_tree({5: 99}), "each output channel once"),
    "tree, parents": (_tree({5 + 16: 3}), "a parent must be an earlier step"),
    "tree, reals": (_tree({}, input=REALS), "one group, and signs or bits"),
    "tree, groups": (
        node(TREE, with_numbers(groups=2), constants=(TREE_WORDS, SCALE, BIAS)),
        "one group, and signs or bits",
    ),
    "tree, short options": (node(TREE, numbers(*CONV_NUMBERS[:-1])), "options: expected 72 bytes, found 68"),
    "tree, variable weights": (
        wired(_variable_tree, tree=True),
        "weights must be constant",
    ),
    "tree, sparse weights": (wired(_sparse_weights, tree=True), "no tree|another length|parity"),
    "linear, rank 0": (linear(models.VERSION, 32, 16, SIGNS, 0, shape=()), "x: expected rank 1 or more, found rank 0"),
    "linear, channels": (linear(models.VERSION, 33, 16, SIGNS, 0), "x: expected channels 33, found 32"),
    "linear, weights": (linear(models.VERSION, 32, 17, SIGNS, 0), "weights: expected 32 elements, found 16"),
    "linear, no batch": (linear(models.VERSION, 32, 16, SIGNS, 0, shape=(3, 0, 32)), r"must be 1 to 2\^24"),
    "linear, short": (linear(models.VERSION, 32, 16, SIGNS), "options: expected 20 bytes, found 16"),
    "linear, conv's options": (linear(*CONV_NUMBERS), "options: expected 20 bytes, found 72"),
    "linear, input": (linear(models.VERSION, 32, 16, -1, 0), "unknown kind"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_hostile_artifacts_are_refused(worker, what):
    model, message = REFUSED[what]
    with pytest.raises(RuntimeFault, match=message):
        worker.open(model)


def test_one_constant_may_be_two_inputs(worker):
    worker.open(wired(_scale_is_bias))
    (found,) = worker.run(given_to(CASE, SIGNS))
    np.testing.assert_array_equal(found.transpose(0, 3, 1, 2), replace(CASE, bias=CASE.scale).expected())


def test_a_tensor_that_two_nodes_write_is_never_written_beyond_its_end(worker):
    """The second resizes what the first has measured."""
    large = simple_case(out=64)
    graph = Graph()
    x = graph.input((1, 4, 4, 32))
    y = add_conv(graph, x, large)
    add_conv(graph, x, CASE)
    graph.subgraph.operators[1].outputs[0] = y
    try:
        worker.open(graph.output(y).build())
        worker.run(given_to(CASE, SIGNS))
    except RuntimeFault as error:
        assert "output: expected 1024 elements, found 256" in str(error)  # noqa: PT017  # either way will do
    worker.open(ADD_ONE)


# What lies between may be a convolution, of gigabytes.
numbers_near = st.one_of(st.integers(-3, 40), st.integers(2**24 + 1, 2**31 - 1), st.integers(-(2**31), -1))
option_bytes = st.one_of(
    st.binary(max_size=100),
    st.lists(numbers_near, max_size=20).map(lambda rest: numbers(1, *rest)),
    st.dictionaries(st.integers(1, 16), numbers_near, max_size=3).map(
        lambda changes: numbers(*(changes.get(n, value) for n, value in enumerate(CONV_NUMBERS)))
    ),
)


@fuzz(100)
@given(
    changes=st.dictionaries(
        st.integers(0, TREE_WORDS.size - 1),
        st.one_of(st.integers(-3, 40), st.integers(-(2**31), 2**31 - 1)),
        max_size=3,
    ),
    length=st.none() | st.integers(0, TREE_WORDS.size),
)
def test_any_trees_are_refused_or_run(worker, changes, length):
    try:
        worker.open(_tree(changes, length))
        worker.run(given_to(CASE, SIGNS))
    except (RuntimeFault, CallerError) as error:
        assert str(error)  # noqa: PT017  # either way will do


@fuzz(150)
@given(name=st.sampled_from([CONV, CONV, LINEAR, TREE]), options=option_bytes)
@example(name=CONV, options=numbers(*CONV_NUMBERS))
def test_any_options_are_refused_or_run(worker, name, options):
    try:
        worker.open(node(name, options))
        worker.run(given_to(CASE, SIGNS))
    except (RuntimeFault, CallerError) as error:
        assert str(error)  # noqa: PT017  # either way will do


# Finding out whether the library is needed.


def test_our_operators_are_found_by_their_names():
    assert tflite.has_own_operators(node())
    assert tflite.has_own_operators(node(LINEAR))
    assert tflite.has_own_operators(mixed()[0])
    assert not tflite.has_own_operators(ADD_ONE)
    assert not tflite.has_own_operators(ADD_ONE + b"ferryman.binary_conv2d")
    assert not tflite.has_own_operators(node("other.binary_conv2d"))
    assert not tflite.has_own_operators(node("ferrymanX"))


NODE = node()


@given(st.one_of(st.binary(max_size=200), st.integers(0, len(NODE)).map(lambda n: NODE[:n])))
def test_any_bytes_may_be_searched(data):
    tflite.has_own_operators(data)


@given(st.lists(st.tuples(st.integers(0, 200), st.binary(min_size=4, max_size=4)), max_size=4))
def test_altered_artifacts_may_be_searched(changes):
    data = bytearray(NODE)
    for at, value in changes:
        data[at : at + 4] = value
    tflite.has_own_operators(bytes(data))


def test_a_hostile_count_ends_soon():
    """Every entry of a vector of 2^31 points at the vector itself."""
    vtable = struct.pack("<HHHHI", 8, 12, 0, 8, 0)
    table = struct.pack("<iiI", 12, 0, 4)
    data = struct.pack("<I", 16) + vtable + table + struct.pack("<I", 2**31) + bytes(1 << 20)
    assert not tflite.has_own_operators(data)
