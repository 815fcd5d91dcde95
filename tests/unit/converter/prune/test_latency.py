"""Seconds of a model: of an interpreter here, and of whatever else is given."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ferryman.converter.prune.latency import checked, measured_latency
from ferryman.converter.prune.structured import prune
from ferryman.runtime.contracts.errors import CallerError
from tests.unit.converter.prune.nets import ResNet, image


def test_a_budget_takes_any_function():
    seen = []

    def latency(model):
        seen.append(1e-6 * sum(part.weight.numel() for part in model.modules() if isinstance(part, nn.Conv2d)))
        return seen[-1]

    done = prune(ResNet().eval(), "pruned-50latency", example=image(), latency=latency)
    assert done.after.seconds <= 0.5 * done.before.seconds
    assert 4 < len(seen) < 40
    assert len(set(seen[:-1])) == len(seen[:-1])  # of the dense model once, too; the last is of what was made


def test_an_interpreter_must_be_known():
    with pytest.raises(CallerError, match=r"interpreter 'abacus' is not known; there are: .*executorch"):
        measured_latency(image(), "abacus")


@pytest.mark.parametrize("found", [0.0, -1, "1 s", None, True, float("inf")])
def test_what_is_no_time_is_refused(found):
    with pytest.raises(CallerError, match="latency must give seconds"):
        checked(lambda _: found)(nn.Identity())


@pytest.mark.slow
@pytest.mark.parametrize("interpreter", ["executorch", "ai-edge-litert"])
def test_an_interpreter_tells_how_narrow_a_model_must_be(interpreter):
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 48, 3, padding=1), nn.ReLU(), nn.Conv2d(48, 96, 3, padding=1), nn.ReLU())
    net, inputs = nn.Sequential(*layers, nn.Conv2d(96, 10, 1)).eval(), (torch.randn(1, 1, 32, 32),)
    done = prune(net, "pruned-60latency", example=inputs, latency=measured_latency(inputs, interpreter))
    assert done.after.macs < done.before.macs  # by how much hangs on what else the machine does
    assert done.after.seconds > 0
