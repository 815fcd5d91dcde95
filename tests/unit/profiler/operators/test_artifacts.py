"""What is read from artifacts, damaged ones too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from ferryman.profiler.flatbuffer_head import Tables, copy, put_before
from ferryman.profiler.operators.kinds import kind_of, of_channels
from ferryman.profiler.operators.node import Node, make_rows, match
from ferryman.profiler.operators.pte import read_method
from ferryman.profiler.operators.slices import slice_head
from ferryman.profiler.operators.tflite_graph import read_tflite
from ferryman.runtime.contracts.errors import RuntimeFault
from ferryman.runtime.flatbuffer import Table
from ferryman.runtime.sessions.tflite import TfliteSession
from tests.support.damage import CHANGES, changed, clear_error
from tests.support.packages import ADD_ONE

PTE = (Path(__file__).parents[3] / "golden" / "pte" / "linear.pte").read_bytes()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Convolution (NHWC, F32) IGEMM #3", "conv2d"),
        ("Convolution (NHWC, F32) DWConv #1", "depthwise_conv2d"),
        ("Fully Connected (NC, F32) GEMM", "linear"),
        ("Transpose (ND, X32) Transpose", "transpose"),
        ("CONV_2D", "conv2d"),
        ("FULLY_CONNECTED", "linear"),
        ("LOGISTIC", "sigmoid"),
        ("Sigmoid (NC)", "sigmoid"),
        ("aten::permute_copy.out", "transpose"),
        ("aten::convolution.out", "conv2d"),
        ("aten::_softmax.out", "softmax"),
        ("dim_order_ops::_clone_dim_order.out", "copy"),
        ("ferryman::binary_conv2d_tree_sign.out", "binary_conv2d"),
        ("ferryman.binary_conv2d_tree", "binary_conv2d"),
        ("ferryman::quant_linear.out", "quant_linear"),
        ("aten::cumsum.out", "cumsum"),
        ("SOMETHING_NEW", "something_new"),
    ],
)
def test_an_operator_has_one_word_on_every_interpreter(name, kind):
    assert kind_of(name) == kind


@pytest.mark.parametrize(
    ("kind", "shape", "word"),
    [
        ("depthwise_conv2d", (1, 28, 28, 1), "conv2d"),
        ("depthwise_conv2d", (1, 28, 28, 8), "depthwise_conv2d"),
        ("depthwise_conv2d", (), "depthwise_conv2d"),
        ("add", (1, 28, 28, 1), "add"),
    ],
)
def test_a_convolution_of_one_channel_is_no_depthwise_one(kind, shape, word):
    assert of_channels(kind, shape) == word


def node(kind, module=None):
    return Node(kind, kind, "xnnpack", module, 8, 1)


def test_events_find_their_nodes_though_some_are_left_out_and_some_put_in():
    nodes = [node("pad", "a"), node("conv2d", "a"), node("add", "b"), node("transpose"), node("linear", "c")]
    events = ["Convolution (NHWC, F32) IGEMM", "Add (ND)", "Clamp (NC)", "Copy (NC)", "Fully Connected (NC, F32) GEMM"]
    found = list(match(events, nodes))
    assert [one.module for one in found] == ["a", "b", "b", None, "c"]
    assert [one.macs for one in found] == [1, 1, 0, 0, 1]
    assert [one.name for one in found] == events


def test_shares_are_of_the_middle_of_whole_microseconds():
    rows = make_rows([(node("add"), [0, 1000, 0, 1000, 1000, 0, 10**9, 0]), (node("mul"), [1500] * 8)])
    assert [row.share for row in rows] == pytest.approx([0.25, 0.75])
    assert [row.share for row in make_rows([(node("add"), [0, 0])])] == [0]


def test_a_delegates_nodes_are_read_from_a_pte():
    (step,) = read_method(PTE, None, {}).values()
    (linear,) = (one for one in step.inside if one.kind == "linear")
    assert (linear.macs, linear.bytes_moved) == (16, 4 * (4 + 16 + 4 + 4))
    with pytest.raises(RuntimeFault, match="no method `other`; there are: forward"):
        read_method(PTE, "other", {})


def test_a_tflite_is_read_and_cut(tmp_path):
    graph = read_tflite(ADD_ONE, None, {"0": "body"})
    (add,) = graph.operators
    assert (add.node.kind, add.node.module, add.node.macs, add.node.bytes_moved) == ("add", "body", 0, 48)
    path = tmp_path / "cut.tflite"
    path.write_bytes(slice_head(ADD_ONE, graph) + ADD_ONE)
    x = np.arange(4, dtype=np.float32).reshape(1, 4)
    with TfliteSession(path, "ai-edge-litert", 1) as session:
        np.testing.assert_array_equal(session.run([x])[0], x + 1)
        wrapper = session._tflite._interpreter
        wrapper.AllocateTensors(graph.subgraphs)
        wrapper.SetTensor(0, x, graph.subgraphs)
        wrapper.Invoke(graph.subgraphs)
        np.testing.assert_array_equal(wrapper.GetTensor(2, graph.subgraphs), x + 1)


@pytest.mark.parametrize(("field", "says"), [("_9", "outside its FlatBuffer"), ("_14", "fields that are not known")])
def test_an_operator_that_cannot_be_moved_is_not_cut(field, says):
    root = Table.root(ADD_ONE, b"TFL3")
    (subgraph,) = root.tables(2)
    (operator,) = (copy(one, "IOOBOObOO", **{field: ("Q", 64)}) for one in subgraph.tables(3))
    altered = copy(root, "IOOOOOOO", _2=Tables([copy(subgraph, "OOOOOI", _3=Tables([operator]))]))
    data = bytes(put_before(altered, b"TFL3")) + ADD_ONE
    with pytest.raises(RuntimeFault, match=f"the .tflite file cannot be cut into operators: .*{says}"):
        slice_head(data, read_tflite(data, None, {}))


def test_there_is_no_such_entry():
    with pytest.raises(RuntimeFault, match="no entry `other`"):
        read_tflite(ADD_ONE, "other", {})


@given(CHANGES)
def test_a_damaged_pte_gives_steps_or_a_clear_error(changes):
    with clear_error(".pte"):
        read_method(changed(PTE, changes), None, {})


@given(CHANGES)
def test_a_damaged_tflite_gives_a_graph_or_a_clear_error(changes):
    data = changed(ADD_ONE, changes)
    with clear_error(".tflite"):
        slice_head(data, read_tflite(data, None, {}))
