"""A model's latency on a named device, measured there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ferryman import find_device, latency_on, read_devices
from ferryman.runtime.contracts.errors import CallerError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def net(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 8)).eval()


@pytest.mark.slow
def test_a_wider_model_takes_longer_on_this_machine():
    measure = latency_on(find_device(read_devices(), "local"), (torch.randn(64, 64),), runs=20)
    narrow, wide = measure(net(8)), measure(net(4096))
    assert 0 < narrow < wide < 60


def test_an_interpreter_that_is_not_there_is_said():
    measure = latency_on(find_device(read_devices(), "local"), (torch.randn(1, 64),), interpreter="nope")
    with pytest.raises(CallerError, match="nope"):
        measure(net(8))
