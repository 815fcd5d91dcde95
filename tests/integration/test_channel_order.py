"""Layers along a tree, from the module to the interpreters' outputs; and hostile trees inside whole artifacts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from ferryman.converter import operators
from ferryman.converter.capture import capture
from ferryman.converter.lower_binary import lower_binary
from ferryman.converter.quiet import quiet
from ferryman.converter.source import make_source
from ferryman.converter.tree_bits import pack_tree
from ferryman.runtime.contracts.errors import RuntimeFault
from ferryman.runtime.isolated import IsolatedSession
from tests.support.interpreters import python_for
from tests.support.kernels import near_duplicates

assert operators.NAMESPACE == "ferryman"
OPS = torch.ops.ferryman
RUNTIMES = {"executorch": ("executorch",), "tflite": ("ai-edge-litert", "tflite-runtime")}
CHANNELS = 256
SHAPE = (CHANNELS, CHANNELS, 3, 3)


def sign(x):
    return torch.where(x >= 0, 1.0, -1.0)


class Two(nn.Module):
    """Floats to packed signs, packed signs to floats; dot products as they are, so that every output is exact."""

    def __init__(self, one, two):
        super().__init__()
        self.one, self.two = (nn.Parameter(torch.from_numpy(weight)) for weight in (one, two))
        self.shift = nn.Parameter(torch.arange(float(CHANNELS)) - CHANNELS / 2)

    def forward(self, x):
        x = functional.conv2d(sign(x), sign(self.one), padding=1) + self.shift[:, None, None]
        return functional.conv2d(sign(x), sign(self.two), padding=1, stride=2)


def random_weights(seed):
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


def lowered(one, two, size=28):
    """The program, its forms, and an input with what eager gives for it."""
    module = Two(one, two).eval()
    torch.manual_seed(0)
    x = torch.randn(1, CHANNELS, size, size)
    captured, forms = lower_binary(capture(make_source(module, (x,))))
    with torch.no_grad():
        return captured, forms, x.numpy(), module(x).numpy()


def targets(captured):
    nodes = captured.program.graph.nodes
    return [node.target for node in nodes if node.op == "call_function" and "ferryman" in str(node.target)]


def outputs(artifact, runtime, x, folder):
    """Of each interpreter of a runtime."""
    path = folder / f"model.{runtime}"
    path.write_bytes(artifact)
    for interpreter in RUNTIMES[runtime]:
        with IsolatedSession(path, runtime, interpreter=interpreter, python=python_for(interpreter)) as session:
            yield session.run([x])[0]


@pytest.fixture(scope="module")
def alike():
    captured, forms, x, expected = lowered(near_duplicates(SHAPE), near_duplicates(SHAPE, seed=1))
    with quiet():  # of the toolchains' warnings, when they are imported too
        from ferryman.converter.backends import BACKENDS

        return captured, forms, x, expected, {name: BACKENDS[name].lower(captured) for name in RUNTIMES}


def test_near_duplicates_go_along_trees_and_say_so(alike):
    captured, forms, x, expected, _ = alike
    assert targets(captured) == [OPS.binary_conv2d_tree_sign.default, OPS.binary_conv2d_tree.default]
    for form, form_of in zip(forms, ("signs in, packed signs out", "packed signs in, floats out"), strict=True):
        assert form.note.startswith(f"{form_of}, channels along a spanning tree: 1")
        assert "x fewer operations, " in form.note
        assert form.note.endswith("x fewer operations, measured faster")
    with torch.no_grad():
        np.testing.assert_array_equal(captured.program.module()(torch.from_numpy(x)).numpy(), expected)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_interpreter_gives_what_eager_gives(alike, runtime, tmp_path):
    _, _, x, expected, artifacts = alike
    assert sum(artifacts[runtime].lowering.kernels.values()) == 2
    assert any("tree" in name for name in artifacts[runtime].lowering.kernels)
    for found in outputs(artifacts[runtime].data, runtime, x, tmp_path):
        np.testing.assert_array_equal(found, expected)


def test_random_weights_stay_plain():
    captured, forms, *_ = lowered(random_weights(0), random_weights(1))
    assert targets(captured) == [OPS.binary_conv2d_sign.default, OPS.binary_conv2d.default]
    assert [form.note for form in forms] == ["signs in, packed signs out", "packed signs in, floats out"]


def test_the_same_model_gives_the_same_program(alike):
    again, *_ = lowered(near_duplicates(SHAPE), near_duplicates(SHAPE, seed=1))
    before, after = alike[0].program.state_dict, again.program.state_dict
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


# Hostile trees, where the artifact has them.

TREE = pack_tree(near_duplicates(SHAPE)).words
OUT, WORDS, ROOTS, ENTRIES = (int(number) for number in TREE[1:5])
ENDS = 5 + 3 * OUT
AT = 5 + 4 * OUT + ROOTS * WORDS


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, 0),
        (1, OUT + 1),
        (2, WORDS + 1),
        (3, ROOTS + 1),
        (4, 2**31 - 1),
        (5, OUT),
        (5 + OUT, 5),
        (5 + 2 * OUT, -1),
        (ENDS, 2**31 - 1),
        (AT, WORDS),
        (AT, -1),
        (AT + ENTRIES, 0),
    ],
)
def test_spoiled_trees_are_refused(alike, runtime, place, value, tmp_path):
    _, _, x, _, artifacts = alike
    artifact = artifacts[runtime].data
    begin = artifact.index(TREE.tobytes()) + 4 * place
    spoiled = artifact[:begin] + np.int32(value).tobytes() + artifact[begin + 4 :]
    path = tmp_path / f"model.{runtime}"
    path.write_bytes(spoiled)
    for interpreter in RUNTIMES[runtime]:
        with (
            pytest.raises(RuntimeFault, match=r"tree: |InvalidArgument|0x12"),
            IsolatedSession(path, runtime, interpreter=interpreter, python=python_for(interpreter)) as session,
        ):
            session.run([x])
