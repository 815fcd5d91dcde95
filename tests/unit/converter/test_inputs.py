from __future__ import annotations

import pytest
import torch
from torch.export import Dim

from ferryman.converter.capture import capture
from ferryman.converter.inputs import input_sets
from ferryman.converter.source import make_source
from tests.unit.converter.nets import captured


def sets(*inputs, count=6, dynamic=None, function=None):
    add = function or (lambda *xs: tuple(x + x for x in xs))
    return list(input_sets(captured(add, *inputs, dynamic=dynamic), count))


def test_the_example_comes_first_and_the_rest_are_the_same_every_time():
    x, ids = torch.randn(4, 3), torch.tensor([3, 9])
    first, again = sets(x, ids), sets(x, ids)
    assert len(first) == 7
    assert torch.equal(first[0][0], x)
    assert all(torch.equal(a, b) for one, two in zip(first, again, strict=True) for a, b in zip(one, two, strict=True))
    assert not torch.equal(first[1][0], first[2][0])


def test_floats_have_the_examples_mean_and_spread():
    x = torch.randn(100, 100) * 5 + 30
    for (found,) in sets(x)[1:]:
        assert found.dtype == torch.float32
        assert found.mean().item() == pytest.approx(30, abs=1)
        assert found.std().item() == pytest.approx(5, abs=0.5)


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_a_constant_example_gets_a_spread_of_one(value):
    for (found,) in sets(torch.full((100, 100), value))[1:]:
        assert found.std().item() == pytest.approx(1, abs=0.1)
        assert found.mean().item() == pytest.approx(value, abs=0.1)


def test_infinite_values_do_not_spoil_the_rest():
    x = torch.tensor([1.0, 2.0, float("inf"), float("nan")])
    assert all(torch.isfinite(found).all() for (found,) in sets(x)[1:])
    assert all(torch.isfinite(found).all() for (found,) in sets(torch.full((2,), float("nan")))[1:])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64])
def test_integers_stay_within_the_examples_range_and_reach_its_ends(dtype):
    found = torch.cat([found.flatten() for (found,) in sets(torch.tensor([[3, 5] * 20], dtype=dtype))[1:]])
    assert found.dtype == dtype
    assert sorted(set(found.tolist())) == [3, 4, 5]


def test_booleans_stay_booleans():
    mask = torch.tensor([True, False] * 20)
    found = [found for (found,) in sets(mask, function=torch.logical_not)[1:]]
    assert all(one.dtype == torch.bool for one in found)
    assert {True, False} == set(torch.cat(found).tolist())
    assert all(one.all() for (one,) in sets(torch.ones(9, dtype=torch.bool), function=torch.logical_not))


def test_the_ends_of_int64_are_no_trap():
    low, high = torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max
    assert len(sets(torch.tensor([low, high]))) == 7
    assert len(sets(torch.tensor([high, high]))) == 7


def test_empty_and_scalar_inputs_keep_their_shape():
    for one in sets(torch.zeros(0, 3), torch.tensor(2.0)):
        assert [tuple(tensor.shape) for tensor in one] == [(0, 3), ()]


def test_dynamic_dimensions_take_their_least_largest_and_middle_size_together():
    batch = Dim("batch", min=2, max=10)
    x = torch.ones(3, 4)
    found = sets(x, x.clone(), count=3, dynamic=({0: batch}, {0: batch}), function=lambda a, b: a + b)
    assert [[tensor.shape[0] for tensor in one] for one in found] == [[3, 3], [2, 2], [10, 10], [6, 6]]


def test_sizes_computed_from_another_agree_with_it_even_under_a_large_bound():
    half = Dim("half", min=1, max=1000)
    net = captured(
        lambda a, b: torch.cat([a, a]) + b,
        torch.ones(3, 2),
        torch.ones(6, 2),
        dynamic=({0: half}, {0: 2 * half}),
    )
    for one in input_sets(net, 3):
        net.eager(one)  # raises where they disagree
        assert one[1].shape[0] == 2 * one[0].shape[0] <= 128


# Indices.


def drawn(function, *inputs):
    """The values of the last input, over many sets."""
    found = list(input_sets(captured(function, *inputs), 20))[1:]
    return set(torch.cat([one[-1].flatten() for one in found]).tolist())


@pytest.mark.parametrize("rows", [1, 2, 7, 100])
@pytest.mark.parametrize("example", [0, 3])
def test_an_index_is_drawn_from_its_whole_table_whatever_the_example_holds(rows, example):
    table = torch.nn.Embedding(rows, 4)
    found = drawn(table.forward, torch.full((8, 50), min(example, rows - 1)))
    assert found == set(range(rows))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_the_ends_of_other_lookups_are_found_too(dtype):
    x = torch.arange(30.0).reshape(3, 10)
    assert drawn(lambda a, i: a.index_select(1, i), x, torch.tensor([2] * 40, dtype=dtype)) == set(range(10))
    assert max(drawn(lambda a, i: a[:, i], x, torch.tensor([2] * 40, dtype=dtype))) == 9


def test_numbers_and_masks_beside_an_index_stay_what_they_are():
    table = torch.nn.Embedding(9, 4)
    found = captured(
        lambda ids, mask: table(ids) * mask[..., None], torch.zeros(1, 60).long(), torch.ones(1, 60).long()
    )
    for ids, mask in list(input_sets(found, 4))[1:]:
        assert set(mask.flatten().tolist()) == {1}
        assert len(set(ids.flatten().tolist())) > 5


def test_indices_that_depend_on_each_other_keep_the_examples_range():
    """Each alone may be as large as 6 beside the example of the other, and both together may not."""
    table = torch.nn.Embedding(9, 4)
    a, b = torch.tensor([0, 2] * 20), torch.tensor([2, 0] * 20)
    sets = list(input_sets(captured(lambda a, b: table(a + b), a, b), 6))
    assert {int(value) for one in sets for part in one for value in part} == {0, 1, 2}


def test_finding_the_ends_leaves_the_module_as_it_was():
    class Counts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(5, 2)
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, ids):
            self.calls += 1
            return self.table(ids) + self.calls

    module = Counts().eval()
    list(input_sets(capture(make_source(module, torch.zeros(1, 3).long())), 4))
    assert float(module.calls) == 0
