from __future__ import annotations

import pytest
import torch
from torch import nn

from ferryman.converter.capture import capture
from ferryman.converter.quantize.calibration import BATCHES_MAX, read_calibration
from ferryman.converter.quantize.choose import choose_calibration
from ferryman.converter.source import make_source
from ferryman.runtime.contracts.errors import CallerError, ModelError


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    ).eval()


def images(count=40):
    torch.manual_seed(1)
    return [torch.randn(1, 1, 8, 8) for _ in range(count)]


def places(chosen, inputs):
    return [next(i for i, one in enumerate(inputs) if torch.equal(one, found)) for (found,) in chosen]


def test_it_chooses_inputs_once_each_and_the_same_every_time():
    given = images()
    found = places(choose_calibration(net(), given, 6), given)
    assert len(set(found)) == 6
    assert places(choose_calibration(net(), given, 6), given) == found
    assert places(choose_calibration(net(), given, 3), given) == found[:3]


def test_ranges_and_means_come_nearer_to_those_of_all_than_by_chance():
    torch.manual_seed(2)
    given = torch.stack([torch.randn(1, 1, 8, 8) * scale + shift for scale, shift in torch.rand(60, 2)])
    with torch.no_grad():
        values = net()[:2](given.flatten(0, 1))  # what the second convolution reads

    def off(indices):
        few = values[indices]
        return (values.max() - few.max()) / values.max(), (values.mean((0, 2, 3)) - few.mean((0, 2, 3))).norm()

    drawn = [off(torch.randperm(60)[:6]) for _ in range(100)]
    found = off(places(choose_calibration(net(), list(given), 6), list(given)))
    for ours, theirs in zip(found, zip(*drawn, strict=True), strict=True):
        assert ours < torch.stack(theirs).median()


def test_a_kind_of_input_that_is_rare_is_among_them():
    """A third of random draws of eight lack it."""
    torch.manual_seed(2)
    given = [torch.randn(1, 1, 8, 8) + (3 if index % 8 == 0 else -1) for index in range(40)]
    assert any(index % 8 == 0 for index in places(choose_calibration(net(), given, 8), given))


def test_a_captured_program_takes_what_convert_takes():
    captured = capture(make_source(net(), (torch.randn(1, 1, 8, 8),)))
    loader = [(torch.randn(16, 1, 8, 8), torch.zeros(16)) for _ in range(20)]
    chosen = choose_calibration(captured, loader, 5)
    assert [[tuple(one.shape) for one in inputs] for inputs in chosen] == [[(1, 1, 8, 8)]] * 5
    assert torch.equal(read_calibration(captured, chosen)[0][0], chosen[0][0])
    everything = read_calibration(captured, loader, most=None)
    assert (len(everything), len(read_calibration(captured, loader))) == (320, BATCHES_MAX)
    assert len(choose_calibration(captured, loader, 1000)) == 320


def test_rows_and_tables():
    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(10, 8), nn.Linear(8, 2)

        def forward(self, ids):
            return self.head(self.table(ids))

    given = [torch.randint(0, 10, (2, 5)) for _ in range(9)]
    assert len(choose_calibration(Text().eval(), given, 2)) == 2


def test_what_it_cannot_do_is_said():
    with pytest.raises(CallerError, match="count is 1 or more"):
        choose_calibration(net(), images(), 0)
    with pytest.raises(CallerError, match="no calibration inputs"):
        choose_calibration(net(), [], 3)
    with pytest.raises(ModelError, match="inputs must be like"):
        choose_calibration(net(), [torch.randn(1, 1, 8, 8), torch.ones(1, 1, 8, 8, dtype=torch.int64)], 1)
    with pytest.raises(ModelError, match="no layer"):
        choose_calibration(nn.ReLU().eval(), [torch.randn(1, 4)], 1)
