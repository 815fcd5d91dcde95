from __future__ import annotations

import torch
from torch.export import Dim

from ferryman.converter.memory_estimate import activations_peak_bytes
from tests.unit.converter.nets import captured

KB = 1024
X = torch.ones(256)  # 1 KB


def peak(function, *inputs, dynamic=None):
    return activations_peak_bytes(captured(function, *inputs, dynamic=dynamic))


def test_a_chain_holds_two_tensors_at_a_time():
    assert peak(lambda x: x.sin().cos().tan(), X) == 2 * KB


def test_what_is_used_later_stays():
    # x is needed to the end: x, sin, cos; then x, cos, sum.
    assert peak(lambda x: x.sin().cos() + x, X) == 3 * KB


def test_the_widest_place_counts():
    # 1 KB -> 4 KB -> 4 KB -> 4 B
    assert peak(lambda x: x.repeat(4).sin().sum(), X) == 8 * KB


def test_all_outputs_are_alive_at_the_end():
    assert peak(lambda x: (x.sin(), x.cos(), x.tan()), X) == 4 * KB


def test_several_results_of_one_operator_count_each():
    # 1 KB, and two halves of it; the tuple and its parts are the same memory.
    assert 2 * KB <= peak(lambda x: torch.split(x, 128), X) <= 3 * KB


def test_dtypes_have_their_own_sizes():
    assert peak(lambda x: x.to(torch.float64), X) == 3 * KB
    assert peak(lambda x: x > 0, X) == KB + 256


def test_weights_are_not_activations():
    net = torch.nn.Linear(256, 256).eval()
    constant = torch.ones(256)
    assert peak(lambda x: net(x) + constant, X) <= 3 * KB


def test_dynamic_dimensions_count_at_their_largest():
    batch = Dim("batch", min=1, max=8)
    assert peak(lambda x: x.sin(), torch.ones(2, 256), dynamic=({0: batch},)) == 16 * KB


def test_a_size_that_only_the_data_tells_is_no_crash():
    assert peak(lambda x: x.nonzero().sum(), X) >= KB
