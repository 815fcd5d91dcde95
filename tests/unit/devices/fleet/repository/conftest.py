"""Real packages: a small network, the same after some training, and with adapters merged."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ferryman.devices.fleet.repository.adapted import adapter_package
from ferryman.devices.fleet.repository.lossy import lossy_package

LOW_DB = 6.0
"""The weights moved at random, so a lossy update of them is not a good one."""
CONV_FLORA, LINEAR_HYDRA, LINEAR_LORA = "second", "third", "last"


@pytest.fixture(scope="session")
def packages(tmp_path_factory):
    """Paths of packages `base`, `tuned` (all weights moved) and `merged`, and of adapters."""
    import torch
    from torch import nn

    from ferryman.converter.adapters import flora, hydra, lora, merge, save_adapters
    from ferryman.converter.api import convert

    torch.manual_seed(0)

    def network():
        layers = {
            "first": nn.Conv2d(3, 16, 3, padding=1),
            "norm": nn.BatchNorm2d(16),
            "relu": nn.ReLU(),
            "second": nn.Conv2d(16, 32, 3, stride=2),
            "mean": nn.AdaptiveAvgPool2d(1),
            "flat": nn.Flatten(),
            "third": nn.Linear(32, 64),
            "act": nn.ReLU(),
            "last": nn.Linear(64, 10),
        }
        net = nn.Sequential()
        for name, layer in layers.items():
            net.add_module(name, layer)
        net.norm.running_var.uniform_(0.5, 2)
        return net.eval()

    base = network()
    tuned = network()
    tuned.load_state_dict(base.state_dict())
    with torch.no_grad():
        for parameter in tuned.parameters():
            moved = torch.tensor(np.random.default_rng(parameter.numel()).standard_t(2, parameter.shape) * 0.004)
            parameter.add_(moved.float())
    made = {
        CONV_FLORA: flora(
            base.second,
            torch.randn(4, 4, 2, 2) * 0.1,
            [torch.randn(n, r) * 0.5 for n, r in ((32, 4), (16, 4), (3, 2), (3, 2))],
        ),
        LINEAR_HYDRA: hydra(
            base.third, (torch.randn(2, 32) * 0.1, torch.randn(64, 2)), (torch.randn(2, 64) * 0.1, torch.randn(64, 2))
        ),
        LINEAR_LORA: lora(base.last, torch.randn(4, 64) * 0.1, torch.randn(10, 4), 0.5),
    }
    adapters = {f"{path}.{name}": one for path, its in made.items() for name, one in its.items()}
    folded = {f"first.{name}": one for name, one in lora(base.first, torch.randn(2, 27), torch.randn(16, 2)).items()}
    folder = tmp_path_factory.mktemp("packages")
    example = torch.randn(1, 3, 10, 10)
    found = SimpleNamespace(example=example.numpy(), adapters=folder / "adapters", folded=folder / "folded")
    for name, model in {"base": base, "tuned": tuned, "merged": merge(base, adapters)}.items():
        found.__dict__[name] = convert(model, (example,), output=folder / name, name="net").path
    save_adapters(found.adapters, base, adapters)
    save_adapters(found.folded, base, folded)
    found.lossy = lossy_package(found.base, found.tuned, "fedzip-z30", folder / "lossy.ferry", sqnr_min_db=LOW_DB)
    found.adapted = adapter_package(found.base, found.adapters, folder / "adapted.ferry")
    return found


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "out.ferry"
