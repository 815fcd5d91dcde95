"""The networks of the pruned forms, trained on real data, and what pruning leaves of them.

python -m tests.zoo.pruned [NETWORK ...]     prints scores: dense, a share of zeros cut off at once, trained, 2:4

Digits are those that scikit-learn ships, photographs too; text is what Python's own help tells about the language.
"""

from __future__ import annotations

import functools
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pydoc_data.topics import topics
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.compress.training import Batch, Loss, Progress, train
from ferryman.converter.prune.unstructured.sparsify import sparsify
from tests.e2e import digits
from tests.zoo import super_resolution
from tests.zoo.detection import Canvases, canvases, detection_loss, mean_average_precision
from tests.zoo.pruned_nets import LENGTH, SIDE, CharacterDecoder, DenseNet, Detector, MobileNet, ResNet, ViT

Run = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]
"""Of arrays in the example's shapes, as `Session.run` is."""
Form = Callable[[nn.Module], nn.Module]
"""A dense model -> a smaller one."""
_SPACE = 0
_FIRST, _LAST = " ", "~"
_PIECES = 64
"""Of held-out text, that loss is measured on."""


@dataclass(frozen=True)
class Network:
    """One network, its task and its data."""

    name: str
    make: Callable[[], nn.Module]
    """Untrained."""
    batches: Callable[[], Iterable[Batch]]
    """The training data; the same instance all the time."""
    loss: Loss
    held_out: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    """Inputs and what is wanted of them."""
    measure: Callable[[torch.Tensor, torch.Tensor], float]
    """Of (outputs, wanted)."""
    metric: str
    better: Literal["higher", "lower"]
    epochs: int
    lr: float

    @property
    def example(self) -> tuple[torch.Tensor]:
        """Positional inputs of one call: one picture, or one piece of text."""
        return (self.held_out()[0][:1],)

    def train(self, epochs: int | None = None, progress: Progress | None = None) -> nn.Module:
        """Train from scratch, the same way every time."""
        torch.manual_seed(5)
        model = self.make()
        return train(
            model, self.batches(), epochs=epochs or self.epochs, lr=self.lr, loss=self.loss, progress=progress
        ).model

    def score(self, run: nn.Module | Run) -> float:
        """Measure a model in eval mode, or anything that runs on arrays in the example's shapes, on held-out data.

        Of several outputs the first counts.
        """
        inputs, wanted = self.held_out()
        if isinstance(run, nn.Module):
            with torch.no_grad():
                found = [run(part) for part in inputs.split(32)]
            outputs = torch.cat([part[0] if isinstance(part, tuple) else part for part in found])
        else:
            outputs = torch.cat([torch.from_numpy(np.array(run([part.numpy()])[0])) for part in inputs.split(1)])
        return self.measure(outputs, wanted)

    def sparsify(self, sparsity: str, *, epochs: int | None = None, progress: Progress | None = None) -> Form:
        """Zeros that come while training, as a form."""
        return lambda model: sparsify(
            model, sparsity, loader=self.batches(), epochs=epochs or self.epochs, lr=self.lr / 2, loss=self.loss,
            example=self.example, progress=progress,
        ).model  # fmt: skip

    def cut(self, sparsity: str) -> Form:
        """Zeros all at once, without training, as a form."""
        return lambda model: sparsify(model, sparsity, example=self.example).model


# Digits.


@functools.cache
def _digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Train images, test images, train labels, test labels; twice as large as they come."""
    train_images, test_images, *labels = digits.images()
    larger = [functional.interpolate(part, size=SIDE, mode="bilinear") for part in (train_images, test_images)]
    return larger[0], larger[1], labels[0], labels[1]


class Shuffled:
    """Batches of (inputs, targets), shuffled anew by torch's generator for each epoch."""

    def __init__(self, inputs: torch.Tensor, targets: torch.Tensor, size: int = 64) -> None:
        self.inputs, self.targets, self.size = inputs, targets, size

    def __len__(self) -> int:
        return math.ceil(len(self.inputs) / self.size)

    def __iter__(self) -> Iterator[Batch]:
        for batch in torch.randperm(len(self.inputs)).split(self.size):
            yield self.inputs[batch], self.targets[batch]


@functools.cache
def _digit_batches() -> Shuffled:
    images, _, labels, _ = _digits()
    return Shuffled(images, labels)


def _test_digits() -> tuple[torch.Tensor, torch.Tensor]:
    return _digits()[1], _digits()[3]


def accuracy(outputs: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of right answers."""
    return float((outputs.argmax(1) == labels).float().mean())


def _classifier(name: str, make: Callable[[], nn.Module], epochs: int, lr: float = 3e-3) -> Network:
    return Network(
        name, make, _digit_batches, functional.cross_entropy, _test_digits, accuracy, "accuracy", "higher", epochs, lr
    )


# Canvases.


@functools.cache
def _canvas_batches() -> Canvases:
    return Canvases()


@functools.cache
def _test_canvases() -> tuple[torch.Tensor, torch.Tensor]:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(12)
        return canvases(200, test=True)


# Photographs.


class Crops:
    """Batches of crops of the photograph to learn from: coarse ones, and as fine as they were."""

    def __init__(self, steps: int = 60, size: int = 16) -> None:
        self.photograph, _ = super_resolution.photographs()
        self.steps, self.size = steps, size

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.steps):
            fine = super_resolution.crops(self.photograph, self.size)
            yield super_resolution.coarser(fine), fine


@functools.cache
def _crops() -> Crops:
    return Crops()


@functools.cache
def _test_tiles() -> tuple[torch.Tensor, torch.Tensor]:
    side = 208
    _, other = super_resolution.photographs()
    fine = other.unfold(2, side, side).unfold(3, side, side).reshape(-1, 1, side, side)
    return super_resolution.coarser(fine), fine


# Text.


@functools.cache
def _text() -> torch.Tensor:
    """Characters as numbers, a space for what is not printable ASCII; the last twelfth is held out."""
    text = "".join(topics[key] for key in sorted(topics))
    return torch.tensor([ord(one) - ord(_FIRST) if _FIRST <= one <= _LAST else _SPACE for one in text])


def _pieces(text: torch.Tensor, starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Characters, and for each the next one."""
    at = starts[:, None] + torch.arange(LENGTH)
    return text[at], text[at + 1]


class Text:
    """Batches of pieces from anywhere in the training text."""

    def __init__(self, steps: int = 60, size: int = 32) -> None:
        self.text = _text()[: len(_text()) * 11 // 12]
        self.steps, self.size = steps, size

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.steps):
            yield _pieces(self.text, torch.randint(0, len(self.text) - LENGTH, (self.size,)))


@functools.cache
def _text_batches() -> Text:
    return Text()


def _test_text() -> tuple[torch.Tensor, torch.Tensor]:
    text = _text()[len(_text()) * 11 // 12 :]
    return _pieces(text, torch.linspace(0, len(text) - LENGTH - 1, _PIECES).long())


def next_character_loss(outputs: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of [N, length, VOCABULARY], in nats."""
    return functional.cross_entropy(outputs.flatten(0, 1), wanted.flatten())


NETWORKS = {
    network.name: network
    for network in (
        _classifier("resnet", ResNet, 8),
        _classifier("mobilenet", MobileNet, 12),
        _classifier("densenet", DenseNet, 12),
        _classifier("vit", ViT, 25, 2e-3),
        Network(
            "detector", Detector, _canvas_batches, detection_loss, _test_canvases, mean_average_precision,
            "mAP@0.5", "higher", 15, 3e-3,
        ),
        Network(
            "super_resolution", super_resolution.SuperResolution, _crops, functional.l1_loss, _test_tiles,
            lambda outputs, wanted: super_resolution.psnr(wanted, outputs), "PSNR dB", "higher", 10, 2e-3,
        ),
        Network(
            "decoder", CharacterDecoder, _text_batches, next_character_loss, _test_text,
            lambda outputs, wanted: float(next_character_loss(outputs, wanted)), "loss nats", "lower", 8, 4e-3,
        ),
    )
}  # fmt: skip


@functools.cache
def trained(name: str) -> nn.Module:
    """A network, trained once a process; not to be changed."""
    return NETWORKS[name].train()


@dataclass(frozen=True)
class Row:
    """What became of a network in one form."""

    network: str
    form: str
    metric: str
    score: float
    parameters: int
    zeros: float
    """Share of all parameters."""
    seconds: float
    """That making it took."""


def rows(network: Network, forms: Iterable[tuple[str, Form]]) -> Iterator[Row]:
    """Measure a network dense, then in each form: (name, function from the dense model to another)."""
    for name, form in (("dense", None), *forms):
        started = time.perf_counter()
        dense = trained(network.name)
        torch.manual_seed(6)  # each form is made the same way, whatever was made before it
        model = dense if form is None else form(dense)
        seconds = time.perf_counter() - started
        yield _row(network, network.name, name, model, seconds)


def born_sparse() -> Iterator[Row]:
    """Measure the networks that never were dense: DASS's cells, SSVI's mean and ensemble."""
    from tests.zoo.bayesian_nets import bayesian_ensemble, bayesian_mean
    from tests.zoo.dass_nets import dass_cells

    for factory in (dass_cells, bayesian_mean, bayesian_ensemble):
        started = time.perf_counter()
        model, _ = factory()
        yield _row(NETWORKS["resnet"], factory.__name__, "as trained", model, time.perf_counter() - started)


def _row(network: Network, name: str, form: str, model: nn.Module, seconds: float) -> Row:
    parameters = list(model.parameters())
    count = sum(parameter.numel() for parameter in parameters)
    zeros = sum(int((parameter == 0).sum()) for parameter in parameters)
    return Row(name, form, network.metric, network.score(model), count, zeros / count, seconds)


def zero_forms(network: Network, progress: Progress | None = None) -> list[tuple[str, Form]]:
    """Forms that `main` prints."""
    return [
        ("sparse-90 at once", network.cut("sparse-90")),
        ("sparse-90", network.sparsify("sparse-90", progress=progress)),
        ("sparse-90-shrink", network.sparsify("sparse-90-shrink", progress=progress)),
        ("sparse-2:4", network.sparsify("sparse-2:4", progress=progress)),
    ]


def tell(epoch: int, epochs: int, loss: float) -> None:
    """Print the progress of training on standard error."""
    print(f"\r  epoch {epoch}/{epochs}, loss {loss:.4f} ", end="\r" if epoch == epochs else "", file=sys.stderr)


def main(names: Sequence[str]) -> None:
    """Print a table, row by row as it comes."""
    torch.set_num_threads(1)
    print(f"{'network':17} {'form':18} {'metric':10} {'score':>7} {'parameters':>10} {'zeros':>6} {'seconds':>8}")
    pruned = (rows(NETWORKS[name], zero_forms(NETWORKS[name], tell)) for name in names or NETWORKS)
    for row in itertools.chain.from_iterable([*pruned, () if names else born_sparse()]):
        print(
            f"{row.network:17} {row.form:18} {row.metric:10} {row.score:7.4f} {row.parameters:10} "
            f"{row.zeros:6.1%} {row.seconds:8.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
