"""Folded and merged networks, trained on real data: what each step costs.

python -m tests.zoo.folded [deep | vanilla | branches ...]     prints scores and bytes

Digits are those that scikit-learn ships; text is what Python's own help tells about the language.
"""

from __future__ import annotations

import functools
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from ferryman.converter.compress.training import Progress
from ferryman.converter.fold.deep_training import train_deep
from ferryman.converter.fold.fold import fold
from ferryman.converter.fold.merge import merge
from tests.zoo.folded_nets import BranchNet, VanillaNet
from tests.zoo.pruned import NETWORKS, Network, Text, tell
from tests.zoo.pruned_nets import CharacterDecoder

BLOCKS = 8
_EPOCHS, _LR = 3, 2e-3
"""Of the cure."""


@dataclass(frozen=True)
class DeepNetwork(Network):
    """A network whose activations fade while it trains."""

    def train(self, epochs: int | None = None, progress: Progress | None = None) -> nn.Module:
        torch.manual_seed(5)
        model, epochs = self.make(), epochs or self.epochs
        return train_deep(model, self.batches(), epochs=epochs, lr=self.lr, loss=self.loss, progress=progress).model


@functools.cache
def _text() -> Text:
    return Text(120)


def _deep() -> Network:
    return replace(NETWORKS["decoder"], name="deep", make=lambda: CharacterDecoder(64, BLOCKS), batches=_text, lr=3e-3)


def _vanilla() -> Network:
    base = {name: getattr(NETWORKS["resnet"], name) for name in Network.__dataclass_fields__}
    return DeepNetwork(**base | {"name": "vanilla", "make": VanillaNet, "epochs": 15})


NETS: dict[str, Callable[[], Network]] = {
    "deep": _deep,
    "vanilla": _vanilla,
    "branches": lambda: replace(NETWORKS["resnet"], name="branches", make=BranchNet),
}


@dataclass(frozen=True)
class Row:
    """What became of a network by one step."""

    network: str
    form: str
    metric: str
    score: float
    parameters: int
    layers: int
    """Convolutions and linear layers; of a decoder blocks."""
    seconds: float


def rows(name: str, model: nn.Module | None = None, *, forms: Sequence[str] | None = None) -> Iterator[Row]:
    """Score a network as trained, and after each step.

    Args:
        name: one of NETS.
        model: it, trained; None: it is trained now.
        forms: the steps; None: all of FORMS.
    """
    network = NETS[name]()
    model = network.train(progress=tell) if model is None else model
    yield _row(network, "as trained", model, 0.0)
    for form in FORMS[name] if forms is None else forms:
        started = time.perf_counter()
        torch.manual_seed(6)
        made = make(network, model, form)
        yield _row(network, form, made, time.perf_counter() - started)


FORMS = {
    "deep": (
        *("folded-1-drop25-similar-plain", "folded-1-drop25-plain", "folded-1-drop25"),
        *("folded-2-plain", "folded-2", "folded-2-drop25", "folded-4-plain", "folded-4", "folded-8"),
    ),
    "vanilla": ("merged",),
    "branches": ("merged",),
}


def make(network: Network, model: nn.Module, form: str, epochs: int = _EPOCHS) -> nn.Module:
    """A network in a form."""
    if form == "merged":
        return merge(model, network.example).model
    return fold(
        model, form, example=network.example, loader=network.batches(), epochs=epochs, lr=_LR, loss=network.loss
    ).model


def _row(network: Network, form: str, model: nn.Module, seconds: float) -> Row:
    layers = sum(isinstance(one, nn.modules.conv._ConvNd | nn.Linear) for one in model.modules())
    blocks = getattr(model, "blocks", None)
    return Row(
        network=network.name,
        form=form,
        metric=network.metric,
        score=network.score(model),
        parameters=sum(one.numel() for one in model.parameters()),
        layers=layers if blocks is None else len(blocks),
        seconds=seconds,
    )


def main(names: Sequence[str]) -> None:
    """Print a table, row by row as it comes."""
    torch.set_num_threads(1)
    print(f"{'network':10} {'form':30} {'metric':10} {'score':>7} {'parameters':>10} {'layers':>6} {'seconds':>8}")
    for row in itertools.chain.from_iterable(rows(name) for name in names or NETS):
        print(
            f"{row.network:10} {row.form:30} {row.metric:10} {row.score:7.4f} {row.parameters:10} {row.layers:6} "
            f"{row.seconds:8.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
