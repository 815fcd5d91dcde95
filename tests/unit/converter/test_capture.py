from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.export import Dim

from ferryman.converter.capture import capture
from ferryman.converter.source import load_sources, make_source
from ferryman.runtime.contracts.errors import ModelError
from ferryman.runtime.contracts.tensor import DynamicDim
from tests.unit.converter.nets import Function, captured

X = torch.arange(6.0).reshape(3, 2)


class Nested(torch.nn.Module):
    def forward(self, image, state, *rest, scale):
        hidden, cell = state["h"]
        return {"y": image * scale + hidden, "more": (cell, [image.sum()])}


def nested():
    module = Nested().eval()
    state = {"h": (torch.ones(3, 2), torch.ones(4))}
    source = make_source(module, {"image": X, "state": state, "scale": torch.ones(1)})
    return module, source


def names(specs):
    return [spec.name for spec in specs]


def test_names_follow_arguments_and_nesting():
    signature = capture(nested()[1]).signature
    assert names(signature.inputs) == ["image", "state.h.0", "state.h.1", "scale"]
    assert names(signature.outputs) == ["y", "more.0", "more.1.0"]


def test_a_saved_program_keeps_the_names(tmp_path):
    _, source = nested()
    program = torch.export.export(source.module, source.args, dict(source.kwargs), strict=False)
    torch.export.save(program, tmp_path / "net.pt2")
    loaded = capture(load_sources(str(tmp_path / "net.pt2"))[None])
    assert loaded.source.name == "net"
    assert loaded.signature == capture(source).signature


def test_inputs_gathered_by_a_star_are_numbered():
    assert names(captured(lambda a, b: a + b, X, X.clone()).signature.inputs) == ["args_0", "args_1"]

    class Layers(torch.nn.Module):
        def forward(self, first, *layers):
            return first + layers[0] + layers[1]

    source = make_source(Layers().eval(), (X, X.clone(), X.clone()))
    assert names(capture(source).signature.inputs) == ["first", "layers_0", "layers_1"]


def test_a_default_that_is_skipped_does_not_shift_the_names():
    class Optional(torch.nn.Module):
        def forward(self, x, ids=None, mask=None):
            return x * mask

    source = make_source(Optional().eval(), {"x": X, "mask": torch.ones(3, 2)})
    assert names(capture(source).signature.inputs) == ["x", "mask"]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda a: a + 1, ["output"]),
        (lambda a: (a + 1, a + 2), ["output_0", "output_1"]),
        (lambda a: [a + 1], ["output_0"]),
        (lambda a: {"z": a + 1, "b": a + 2}, ["z", "b"]),
        (lambda a: (a + 1, {"k": (a + 2,)}), ["output_0", "output_1.k.0"]),
    ],
)
def test_outputs_are_named_by_their_place(function, expected):
    found = captured(function, X)
    assert names(found.signature.outputs) == expected
    values = found.eager(found.example)
    assert len(values) == len(expected)
    assert values[0].max() == 6


def test_one_tensor_given_for_two_inputs_stays_two_inputs():
    """torch.export would make them one, and the artifact would read the second value for both."""
    found = captured(lambda a, b: a + 2 * b, X, X)
    users = {node.name: len(node.users) for node in found.program.graph.nodes if node.op == "placeholder"}
    assert all(users.values()), users
    a, b = torch.ones(3, 2), torch.full((3, 2), 10.0)
    assert torch.equal(found.program.module()(a, b), a + 2 * b)
    assert found.example[0].data_ptr() != found.example[1].data_ptr()


def test_example_inputs_that_require_a_gradient_are_taken():
    found = captured(lambda a: a * 2, X.clone().requires_grad_())
    np.testing.assert_array_equal(found.eager(found.example)[0], X.numpy() * 2)
    assert not found.example[0].requires_grad


def test_what_eager_answers_stays_when_the_module_runs_again():
    class Accumulates(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("total", torch.zeros(2))

        def forward(self, x):
            self.total += x
            return self.total

    found = capture(make_source(Accumulates().eval(), torch.ones(2)))
    first = found.eager((torch.ones(2),))[0]
    kept = first.copy()
    found.eager((torch.ones(2),))
    np.testing.assert_array_equal(first, kept)


def test_a_dynamic_dimension_keeps_its_bounds_and_its_symbol():
    batch = Dim("batch", min=2, max=8)
    found = captured(lambda a, b: (a + b, a.T), X, X.clone(), dynamic=({0: batch}, {0: batch}))
    (first, second), (total, turned) = found.signature.inputs, found.signature.outputs
    assert isinstance(first.shape[0], DynamicDim)
    assert (first.shape[0].min, first.shape[0].max, first.shape[1]) == (2, 8, 2)
    assert first.shape[0] == second.shape[0] == total.shape[0] == turned.shape[1]


def test_a_size_computed_from_another_has_its_bounds_too():
    half = Dim("half", min=1, max=8)
    found = captured(lambda a, b: torch.cat([a, a]) + b, X, torch.ones(6, 2), dynamic=({0: half}, {0: 2 * half}))
    sizes = [spec.shape[0] for spec in found.signature.inputs]
    assert [(size.min, size.max) for size in sizes] == [(1, 8), (2, 16)]
    for pick in (min, max):
        a, b = found.input_shapes(pick)
        assert b[0] == 2 * a[0]


def test_a_dimension_without_an_upper_bound_is_refused_with_what_to_do():
    with pytest.raises(ModelError, match=r"args_0: dimension .* has no upper bound.*max=\.\.\."):
        captured(lambda a: a + 1, X, dynamic=({0: Dim("batch")},))


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (lambda a: None, "output 'output' is not a tensor"),
        (lambda a: (a, 3), "output 'output_1' is not a tensor"),
        (lambda a: (a + 1, a.shape[0]), "output 'output_1' is not a tensor"),
        (lambda a: {"a": a, "n": None}, "output 'n' is not a tensor"),
        (lambda a: (), "net returns nothing"),
    ],
)
def test_outputs_that_are_no_tensors_are_refused_by_name(function, match):
    with pytest.raises(ModelError, match=match):
        captured(function, X)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64])
def test_dtypes_that_artifacts_do_not_carry_are_refused_by_name(dtype):
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ModelError, match=f"output_1 has dtype {name}; artifacts carry bool"):
        captured(lambda a: (a, a.to(dtype)), X)
    with pytest.raises(ModelError, match=f"args_1 has dtype {name}; artifacts carry bool"):
        captured(lambda a, b: a, X, X.to(dtype))


def test_what_cannot_be_exported_is_refused_in_few_lines_with_the_cause_kept():
    with pytest.raises(ModelError, match="cannot capture net: Could not guard on data-dependent expression") as caught:
        captured(lambda a: a if a.sum() > 0 else -a, X)
    assert len(str(caught.value).splitlines()) <= 4
    assert "draft_export" in str(caught.value.__cause__)


def test_a_model_that_changes_its_input_is_refused():
    found = capture(make_source(Function(lambda x: x.view(1, 2).add_(1)), torch.zeros(2)))
    with pytest.raises(ModelError, match=r"changes its input .* in place"):
        found.eager(found.example)


def test_examples_in_any_memory_layout_are_captured_contiguous():
    image = torch.randn(1, 4, 8, 8).to(memory_format=torch.channels_last)
    found = capture(make_source(Function(lambda x: x * 2), image))
    assert found.example[0].is_contiguous()
    assert torch.equal(found.example[0], image)
