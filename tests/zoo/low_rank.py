"""What low ranks leave of networks trained on real data.

python -m tests.zoo.low_rank [NETWORK ...]     prints scores: dense, decomposed, fine-tuned, TRP, learned ranks
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ferryman.converter.low_rank.factorize import Factorized, factorize
from ferryman.converter.low_rank.timing import Timer
from tests.zoo.pruned import NETWORKS, Network, trained

NAMES = ("resnet", "mobilenet", "vit")
FORM = "lowrank-50flops"
STEPS = (
    ("decomposed, without data", FORM, False, 0),
    ("decomposed", FORM, True, 0),
    ("fine-tuned", FORM, True, 6),
    ("TRP", f"{FORM}-trp", True, 6),
    ("learned ranks", f"{FORM}-learned", True, 6),
)
"""What it is called, the form, whether it is given data, epochs."""


@dataclass(frozen=True)
class Row:
    """What became of a network."""

    network: str
    what: str
    score: float
    macs: float
    """Over the dense one's."""
    nbytes: float
    changed: int
    """Layers."""
    seconds: float
    """That making it took."""


def make(network: Network, form: str, *, data: bool, epochs: int, timer: Timer | None = None) -> Factorized:
    """A trained network in a form, the same way every time."""
    torch.manual_seed(6)
    return factorize(
        trained(network.name), form, example=network.example, loader=network.batches() if data else None,
        epochs=epochs, lr=network.lr / 2, loss=network.loss, timer=timer,
    )  # fmt: skip


def rows(name: str, timer: Timer | None = None) -> Iterator[Row]:
    """All steps of one network."""
    network = NETWORKS[name]
    yield Row(name, "dense", network.score(trained(name)), 1.0, 1.0, 0, 0.0)
    for what, form, data, epochs in STEPS:
        start = time.perf_counter()
        done = make(network, form, data=data, epochs=epochs, timer=timer)
        changed = sum(row.way is not None for row in done.decisions)
        macs, nbytes = done.after.macs / done.before.macs, done.after.nbytes / done.before.nbytes
        yield Row(name, what, network.score(done.model), macs, nbytes, changed, time.perf_counter() - start)


def main(names: Sequence[str]) -> None:
    """Print a table, row by row as it comes."""
    torch.set_num_threads(1)
    print("| network | what | accuracy | multiplications | bytes | layers changed | seconds |\n" + "|---" * 7 + "|")
    for name in names or NAMES:
        for row in rows(name):
            print(
                f"| {row.network} | {row.what} | {row.score:.4f} | {row.macs:.2f} | {row.nbytes:.2f} | {row.changed} | "
                f"{row.seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
