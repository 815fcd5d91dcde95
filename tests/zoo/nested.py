"""Nested networks, trained on real data, and what their sub-networks keep.

python -m tests.zoo.nested [NETWORK ...]     prints scores: in order alone, trained, mixed within budgets
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from ferryman.converter.nested.mix import mix
from ferryman.converter.nested.network import Nested, nest
from ferryman.converter.prune.budget import count
from tests.zoo.pruned import NETWORKS, Network, Run, trained

FORMS = {
    "decoder": "nested-12-25-50-75-100",
    "vit": "nested-12-25-50-75-100",
    "mobilenet": "nested-25-50-75-100",
    "resnet": "nested-12-25-50-100-ordered",
}
"""Network of `tests.zoo.pruned` -> how it is nested: MatFormer's way, and ordered features."""
BUDGETS = (60, 80)
"""Percent of multiplications that levels are mixed within."""


def as_run(module: nn.Module) -> Run:
    """A sub-network, which has the example's shapes."""

    def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
        with torch.no_grad():
            return [module(*map(torch.from_numpy, arrays)).numpy()]

    return run  # type: ignore[return-value]  # sequences


def nested(network: Network, model: nn.Module, form: str, epochs: int | None = None) -> Nested:
    """Nest a trained network and train it on."""
    torch.manual_seed(1)
    return nest(
        model, form, example=network.example, loader=network.batches(), epochs=epochs or network.epochs,
        lr=network.lr / 2, loss=network.loss, distil=network.metric == "accuracy",
    )  # fmt: skip


def rows(name: str, epochs: int | None = None) -> Iterator[tuple[str, str, float, float, float]]:
    """(network, what, share of multiplications, share of bytes, score) of a network."""
    network = NETWORKS[name]
    model = trained(name)
    example = network.example
    whole = count(model, example)
    yield name, "dense", 1.0, 1.0, network.score(model)

    def row(what: str, module: nn.Module) -> tuple[str, str, float, float, float]:
        cost = count(module, example)
        return name, what, cost.macs / whole.macs, cost.nbytes / whole.nbytes, network.score(as_run(module))

    untrained = nest(model, FORMS[name], example=example)
    for level, module in untrained.variants().items():
        yield row(f"{level} % in order, not trained", module)
    made = nested(network, model, FORMS[name], epochs)
    for level, module in made.variants().items():
        yield row(f"{level} %", module)
    for percent in BUDGETS:
        found = mix(made, percent, example=example, loader=network.batches(), loss=network.loss)
        yield row(f"mixed to {percent} % of flops", made.variant(found.levels))


if __name__ == "__main__":
    for chosen in sys.argv[1:] or FORMS:
        started = time.perf_counter()
        for _, what, macs, nbytes, score in rows(chosen):
            print(f"{chosen:12} {what:32} {macs:6.3f} of flops {nbytes:6.3f} of bytes  {score:.4f}", flush=True)
        print(f"{chosen:12} {time.perf_counter() - started:.0f} s", flush=True)
