"""Makes tests/golden/shared: small models whose layers share weights, for packed weights and entries.

    two     fp32, entries `small` and `large`, one linear layer in both and twice in `large`
    scaled  dynamic int8: two layers of the same codes, the second's scales twice the first's
    static  static int8: one layer used twice, on activations of two ranges

Run as `python -m tests.support.shared` after a change of the toolchains.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import litert_torch
import numpy as np
import torch
from ai_edge_quantizer import quantizer, recipe
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
from executorch.exir import to_edge_transform_and_lower
from torch import Tensor, nn
from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
from torchao.quantization.granularity import PerAxis
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

import ferryman.converter.api  # noqa: F401  # before the backends
from ferryman.converter.quiet import quiet
from tests.support.golden import SHARED

WIDTH = 32


class Small(nn.Module):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)))


class Large(nn.Module):
    """The same two, the first used twice."""

    def __init__(self, small: Small) -> None:
        super().__init__()
        self.small = small

    def forward(self, x: Tensor) -> Tensor:
        return self.small(torch.relu(self.small.first(x)))


class Scaled(nn.Module):
    """Two layers; the weights of one are twice the other's."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.other.weight.data.copy_(2 * self.one.weight.data)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.one(x), self.other(x)


class Twice(nn.Module):
    """One layer, on what it is given and on much larger activations."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.layer(x)
        return y, self.layer(torch.relu(y) * 30 + 7)


def _pte(name: str, *programs: tuple[str, torch.export.ExportedProgram]) -> None:
    lowered = to_edge_transform_and_lower(dict(programs), partitioner=[XnnpackPartitioner()]).to_executorch()
    (SHARED / f"{name}.pte").write_bytes(lowered.buffer)


def _static_pte(model: nn.Module, x: Tensor) -> None:
    chosen = XNNPACKQuantizer()
    chosen.set_global(get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False))
    prepared = prepare_pt2e(torch.export.export(model, (x,)).module(), chosen)
    prepared(x)
    _pte("static", ("forward", torch.export.export(convert_pt2e(prepared), (x,))))


def _static_tflite(model: nn.Module, x: Tensor) -> None:
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.tflite"
        litert_torch.convert(model, (x,)).export(str(plain))
        made = quantizer.Quantizer(str(plain), recipe.static_wi8_ai8())
        calibrated = made.calibrate({"serving_default": [{"args_0": x.numpy()}]})
        (SHARED / "static.tflite").write_bytes(made.quantize(calibrated).quantized_model)


def main() -> None:
    """Write all of them."""
    SHARED.mkdir(exist_ok=True)
    torch.manual_seed(0)
    x = torch.randn(2, WIDTH)
    small = Small().eval()
    entries = {"small": small, "large": Large(small).eval()}
    with quiet():
        _pte("two", *((name, torch.export.export(model, (x,))) for name, model in entries.items()))
        signatures = litert_torch.signature("small", entries["small"], (x,)).signature("large", entries["large"], (x,))
        signatures.convert().export(str(SHARED / "two.tflite"))
        scaled = Scaled().eval()
        quantize_(scaled, Int8DynamicActivationIntxWeightConfig(torch.int8, PerAxis(0)))
        _pte("scaled", ("forward", torch.export.export(scaled, (x,))))
        _static_pte(Twice().eval(), x)
        _static_tflite(Twice().eval(), x)
    answers = {name: model(x).detach().numpy() for name, model in entries.items()}
    np.savez(SHARED / "two.npz", x=x.numpy(), bias=small.last.bias.detach().numpy(), **answers)


if __name__ == "__main__":
    main()
