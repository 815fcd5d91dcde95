"""ferryman's operators inside ExecuTorch, in a process of their own: a crash there fails a test here."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ferryman.converter import operators
from ferryman.converter.bits import pack_weights
from ferryman.converter.quiet import quiet
from ferryman.converter.tree_bits import pack_tree
from ferryman.runtime.contracts.errors import RuntimeFault
from ferryman.runtime.isolated import IsolatedSession
from tests.support.kernels import near_duplicates

assert operators.NAMESPACE == "ferryman"
SHAPE = (64, 32, 3, 3)
WINDOW = (32, [3, 3], [1, 1], [1, 1, 1, 1], [1, 1], 1, 0, False)


class Conv(torch.nn.Module):
    """All of the operator's tensors are inputs, so that the memory plan says where they lie."""

    def __init__(self, *, tree: bool) -> None:
        super().__init__()
        self.tree = tree

    def forward(self, x, weight, scale, bias):
        if self.tree:
            return torch.ops.ferryman.binary_conv2d_tree(x, weight, scale, bias, *WINDOW)
        return torch.ops.ferryman.binary_conv2d(x, weight, scale, bias, *WINDOW, False)


@pytest.fixture(scope="module", params=[True, False], ids=["tree", "plain"])
def conv(request):
    weight = near_duplicates(SHAPE)
    words = pack_tree(weight).words if request.param else pack_weights(weight, 1)
    torch.manual_seed(0)
    inputs = (torch.randn(1, 32, 24, 24), torch.from_numpy(words.view(np.int32)), torch.ones(64), torch.zeros(64))
    with quiet():  # of the toolchain's warnings, when it is imported too
        from executorch.exir import to_edge

        program = to_edge(torch.export.export(Conv(tree=request.param), inputs)).to_executorch()
    return bytes(program.buffer), [array.numpy() for array in inputs]


def run(artifact, inputs, folder):
    path = folder / "model.pte"
    path.write_bytes(artifact)
    with IsolatedSession(path, "executorch", interpreter="executorch") as session:
        return session.run(inputs)[0]


@pytest.mark.parametrize("ending", [False, True], ids=["at its beginning", "at its end"])
@pytest.mark.parametrize("which", range(4), ids=["x", "weight", "scale", "bias"])
def test_an_output_that_shares_memory_with_an_input_is_refused(conv, which, ending, tmp_path):
    from executorch.exir._serialize._program import deserialize_pte_binary, serialize_pte_binary

    artifact, inputs = conv
    assert run(artifact, inputs, tmp_path).shape == (1, 64, 24, 24)
    file = deserialize_pte_binary(artifact)
    plan = file.program.execution_plan[0]
    out = plan.values[plan.outputs[0]].val.allocation_info
    moved = plan.values[plan.inputs[which]].val.allocation_info
    moved.memory_id = out.memory_id
    moved.memory_offset_low = out.memory_offset_low + (64 * 24 * 24 - 1) * 4 * ending
    plan.non_const_buffer_sizes[out.memory_id] += 1 << 20
    with pytest.raises(RuntimeFault, match=r"out shares memory with an input"):
        run(bytes(serialize_pte_binary(file)), inputs, tmp_path)
