"""Observers: what they see and the scales they make of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ferryman.converter.quantize.observe import Seen, find_scale, observe
from ferryman.converter.quantize.recipe import OBSERVERS


def seen_of(values: np.ndarray) -> Seen:
    counts, _ = np.histogram(values[values != 0], 2048, (values.min(), values.max()))
    return Seen(low=float(values.min()), high=float(values.max()), counts=counts)


def error(values: np.ndarray, seen: Seen, observer: str) -> float:
    scale = find_scale(seen, observer)
    kept = np.clip(np.rint(values / scale.scale) + scale.zero, -128, 127) - scale.zero
    return float(np.square(values - kept * scale.scale).mean())


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("shape", ["normal", "relu", "uniform", "constant"])
def test_zero_is_exact_and_most_of_the_range_is_kept(observer, shape):
    random = np.random.default_rng(0)
    values = {
        "normal": random.normal(1, 2, 100_000),
        "relu": np.maximum(random.normal(0, 1, 100_000), 0),
        "uniform": random.uniform(-3, 5, 100_000),
        "constant": np.full(100, 2.5),
    }[shape]
    seen = seen_of(values)
    scale = find_scale(seen, observer)
    assert scale.scale > 0
    assert -128 <= scale.zero <= 127
    assert error(values, seen, observer) < 0.002 * np.square(values).mean()


def test_outliers_are_what_the_observers_differ_in():
    random = np.random.default_rng(0)
    values = random.normal(0, 1, 100_000)
    values[:3] = 200
    seen = seen_of(values)
    widths = {observer: find_scale(seen, observer).scale for observer in OBSERVERS}
    assert widths["percentile"] < 0.1 * widths["minmax"]
    assert widths["entropy"] < widths["minmax"]
    errors = {observer: error(values, seen, observer) for observer in ("minmax", "mse")}
    assert errors["mse"] <= errors["minmax"]


def test_a_program_is_watched_over_all_batches():
    class Net(nn.Module):
        def forward(self, x):
            return torch.relu(x) * 2

    program = torch.export.export(Net().eval(), (torch.randn(2, 3),)).module()
    node = next(n for n in program.graph.nodes if n.op == "call_function" and "relu" in str(n.target))
    batches = [(torch.full((2, 3), value),) for value in (-1.0, 4.0, 2.0)]
    seen = observe(program, batches, {node: 1})[node]
    assert (seen.low, seen.high) == (0.0, 4.0)
    torch.testing.assert_close(seen.mean, torch.full((3,), 2.0))
    assert int(seen.counts.sum()) == 12  # zeros are not counted
