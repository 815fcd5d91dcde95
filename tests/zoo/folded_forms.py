"""Folded, low-rank and nested networks: score against bytes and latency, beside the dense one.

python -m tests.zoo.folded_forms     prints the table and draws docs/folding.svg
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from ferryman.converter.api import compress, convert
from ferryman.profiler.pareto import draw, measure, table
from tests.support.interpreters import ROOT
from tests.zoo.pruned import NETWORKS, trained

FORMS = {
    "dense": ("fp32", "4bit"),
    "folded-3": ("fp32", "4bit"),
    "lowrank-50flops": ("fp32", "4bit"),
    "nested-12-25-50-100": ("fp32", "4bit"),
}
"""What the network becomes, and as what it is converted."""
_PLOTTED = "vit"
_PLACES = ("executorch", "ai-edge-litert")
_LEAST_DB = 5.0
_CALIBRATION = 16
"""Batches."""


def make(form: str) -> nn.Module | Mapping[str, nn.Module]:
    """The trained network in a form, trained for as long again."""
    network, dense = NETWORKS[_PLOTTED], trained(_PLOTTED)
    if form == "dense":
        return dense
    torch.manual_seed(0)
    made = compress(
        dense, form, loader=network.batches(), epochs=network.epochs, lr=network.lr / 2, example=network.example
    )
    return made.variants or made.model


def main() -> None:
    """Convert everything, measure it here, draw."""
    torch.set_num_threads(1)
    network = NETWORKS[_PLOTTED]
    inputs, labels = network.held_out()
    labelled = [
        ((image.numpy(),), label.numpy()) for image, label in zip(inputs.split(1), labels.split(1), strict=True)
    ]
    calibration = [given[:1] for _, (given, _) in zip(range(_CALIBRATION), network.batches(), strict=False)]
    packages = []
    with tempfile.TemporaryDirectory() as folder:
        for form, kinds in FORMS.items():
            made = make(form)
            for kind in kinds:
                print(f"  {form} as {kind}", file=sys.stderr)
                packages.append(
                    convert(
                        made, network.example, form=kind, calibration=calibration if kind != "fp32" else None,
                        output=folder, name=f"{form}-{kind}", sqnr_min_db=_LEAST_DB, interpreters=_PLACES,
                    ).path
                )  # fmt: skip
        points = measure(packages, labelled)
    print(table(points))
    draw(points, Path(ROOT) / "docs" / "folding.svg")


if __name__ == "__main__":
    main()
