"""Pruned networks on the interpreters: score, bytes and speed beside the dense ones.

python -m tests.zoo.pruned_forms [NETWORK ...]     prints the table; without names, also draws docs/pruning.svg

The plot is of the residual network, at several degrees of pruning.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ferryman.converter.api import compress, convert
from ferryman.profiler.pareto import draw, measure
from ferryman.profiler.pareto import table as pareto_table
from ferryman.runtime.beside import time_beside
from ferryman.runtime.contracts.errors import FerrymanError
from ferryman.runtime.contracts.manifest import Variant
from ferryman.runtime.package import open_package
from ferryman.runtime.session import open_session
from tests.support.interpreters import ROOT
from tests.zoo.pruned import NETWORKS, Network, trained

FORMS = (
    ("pruned-50flops", "fp32"),
    ("pruned-50flops", "int8"),
    ("sparse-90", "sparse"),
    ("sparse-90", "4bit-sparse"),
    ("sparse-2:4", "sparse"),
)
"""What a network becomes, and as what it is converted."""
DEGREES = (
    *(("dense", form) for form in ("fp32", "int8", "4bit")),
    *((f"pruned-{percent}flops", form) for percent in (70, 50, 30) for form in ("fp32", "int8")),
    *((f"sparse-{percent}", form) for percent in (80, 90, 95) for form in ("sparse", "4bit-sparse")),
)
_PLOTTED = "resnet"
_PLACES = ("executorch", "ai-edge-litert")
_LEAST_DB = 5.0
_CALIBRATION = 16
"""Batches."""


@dataclass(frozen=True)
class Row:
    """One form of a network on one interpreter."""

    network: str
    form: str
    interpreter: str
    metric: str
    dense: float
    score: float
    size: float
    """Over dense fp32's bytes."""
    speed: float
    """Times dense fp32's, in turn in one process."""


def make(network: Network, form: str) -> nn.Module:
    """The trained network, pruned with training."""
    dense = trained(network.name)
    if form == "dense":
        return dense
    torch.manual_seed(0)
    return compress(
        dense, form,
        loader=network.batches(), epochs=network.epochs, lr=network.lr / 2, loss=network.loss, example=network.example,
    ).model  # fmt: skip


def package(network: Network, model: nn.Module, form: str, folder: Path, name: str) -> Path:
    """Convert; quantized forms are calibrated with training data."""
    batches = [inputs[:1] for _, (inputs, _) in zip(range(_CALIBRATION), network.batches(), strict=False)]
    return convert(
        model, network.example, form=form, calibration=batches if "bit" in form or "int8" in form else None,
        output=folder, name=name, sqnr_min_db=_LEAST_DB, interpreters=_PLACES,
    ).path  # fmt: skip


def rows(network: Network, folder: Path) -> Iterator[Row]:
    """Every form on both interpreters."""
    base = _unpack(package(network, trained(network.name), "fp32", folder, "dense"))
    x = network.example[0].numpy()
    dense_score = network.score(trained(network.name))
    made: dict[str, nn.Module] = {}
    for form, convert_as in FORMS:
        if form not in made:
            print(f"  {network.name}: {form}", file=sys.stderr)
            made[form] = make(network, form)
        name = f"{form} as {convert_as}"
        try:
            artifacts = _unpack(package(network, made[form], convert_as, folder, "pruned"))
        except FerrymanError as error:  # nothing is gained, and why
            print(f"  {network.name}: {name} is refused: {error}", file=sys.stderr)
            continue
        for place in _PLACES:
            (variant, path), (_, dense_path) = artifacts[place], base[place]
            with open_session(path, variant.runtime, interpreter=place, threads=1) as session:
                dtypes = [spec.dtype for spec in session.signature.inputs]
                score = network.score(
                    lambda given, s=session, d=dtypes: s.run([one.astype(t) for one, t in zip(given, d, strict=True)])
                )
                inputs = [[x.astype(dtypes[0])]] * 2
            dense_s, pruned_s = (np.array(one) for one in time_beside([dense_path, path], place, inputs))
            size = path.stat().st_size / dense_path.stat().st_size
            speed = float(np.median(dense_s / pruned_s))
            yield Row(network.name, name, place, network.metric, dense_score, score, size, speed)


def _unpack(path: Path) -> dict[str, tuple[Variant, Path]]:
    """Interpreter -> its variant, and the artifact beside the package."""
    found = {}
    with open_package(path) as opened:
        for variant in opened.manifest.variants:
            to = path.with_name(f"{path.stem}-{variant.form}{Path(variant.payload).suffix}")
            to.write_bytes(opened.read(variant.payload))
            for name in variant.requires.interpreters:
                found[name] = variant, to
    return found


def plot(folder: Path) -> None:
    """Accuracy against bytes and latency, of one network at several degrees."""
    network = NETWORKS[_PLOTTED]
    inputs, labels = network.held_out()
    labelled = [
        ((image.numpy(),), label.numpy()) for image, label in zip(inputs.split(1), labels.split(1), strict=True)
    ]
    made: dict[str, nn.Module] = {}
    packages = []
    for degree, form in DEGREES:
        print(f"  {degree} as {form}", file=sys.stderr)
        if degree not in made:
            made[degree] = make(network, degree)
        try:
            packages.append(package(network, made[degree], form, folder, f"{degree.replace(':', '-')}-{form}"))
        except FerrymanError as error:
            print(f"  refused: {error}", file=sys.stderr)
    points = measure(packages, labelled)
    print(pareto_table(points))
    draw(points, Path(ROOT) / "docs" / "pruning.svg")


def main(names: Sequence[str]) -> None:
    """Print rows as they come."""
    torch.set_num_threads(1)
    print("| network | form | interpreter | metric | dense | pruned | bytes | times as fast |\n" + "|---" * 8 + "|")
    with tempfile.TemporaryDirectory() as scratch:
        for name in names or NETWORKS:
            for row in rows(NETWORKS[name], Path(scratch)):
                print(
                    f"| {row.network} | {row.form} | {row.interpreter} | {row.metric} | {row.dense:.3f} | "
                    f"{row.score:.3f} | {row.size:.2f} | {row.speed:.2f} |",
                    flush=True,
                )
        if not names:
            plot(Path(scratch))


if __name__ == "__main__":
    main(sys.argv[1:])
