"""Updates to measure bytes of: networks trained on digits, changed as people change networks, as real artifacts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.backends import BACKENDS
from ferryman.converter.capture import capture
from ferryman.converter.compress.binary import binarize, fine_tune
from ferryman.converter.forms import find_form
from ferryman.converter.quiet import quiet
from ferryman.converter.source import make_source
from tests.benchmarks.frame import progress
from tests.e2e import digits

RUNTIMES = ("executorch", "tflite")
_WIDE, _TOKENS, _RANK = 144, 16, 8
_TUNED_BATCHES = 12


class Update(NamedTuple):
    """One payload, before and after."""

    name: str
    runtime: str
    old: bytes
    new: bytes
    layer: bytes | None = None
    """The new values of the one layer that changed, where it is only one."""


class Convolutions(nn.Module):
    """Four 3x3 convolutions of up to 2.4 MB, a mean over space, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inside, outside, stride in ((1, 32, 1), (32, 128, 2), (128, 256, 1), (256, 256, 2)):
            conv = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
            layers += [conv, nn.BatchNorm2d(outside), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(256, 10)

    def forward(self, image):
        return self.classifier(self.features(image).mean((2, 3)))


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(_WIDE), nn.LayerNorm(_WIDE)
        self.qkv, self.out = nn.Linear(_WIDE, 3 * _WIDE), nn.Linear(_WIDE, _WIDE)
        self.up, self.down = nn.Linear(_WIDE, 4 * _WIDE), nn.Linear(4 * _WIDE, _WIDE)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).view(-1, _TOKENS, 3, 4, _WIDE // 4).permute(2, 0, 3, 1, 4)
        mixed = functional.softmax(q @ k.transpose(-2, -1) / (_WIDE // 4) ** 0.5, -1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(-1, _TOKENS, _WIDE))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Patches of 2x2, then blocks; `uses` says which block is used in turn."""

    def __init__(self, uses: Sequence[int]) -> None:
        super().__init__()
        blocks = [_Block() for _ in range(max(uses) + 1)]
        self.patches, self.place = nn.Conv2d(1, _WIDE, 2, 2), nn.Parameter(torch.randn(_TOKENS, _WIDE) * 0.02)
        self.blocks = nn.ModuleList(blocks[use] for use in uses)
        self.classifier = nn.Linear(_WIDE, 10)

    def forward(self, image):
        x = self.patches(image).flatten(2).transpose(1, 2) + self.place
        for block in self.blocks:
            x = block(x)
        return self.classifier(x.mean(1))


class _Adapted(nn.Module):
    """A linear layer and a low-rank change of it (LoRA, Hu et al. 2021)."""

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__()
        self.dense = dense
        self.a = nn.Parameter(torch.randn(_RANK, dense.in_features) / dense.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(dense.out_features, _RANK))

    def forward(self, x):
        return self.dense(x) + functional.linear(functional.linear(x, self.a), self.b)

    def merged(self) -> nn.Linear:
        with torch.no_grad():
            self.dense.weight += self.b @ self.a
        return self.dense


def train(model: nn.Module, lr: float, batches: int, parameters: Sequence[nn.Parameter] | None = None) -> nn.Module:
    """Train for so many batches of 64; batch norms learn statistics only where everything is trained."""
    optimizer = torch.optim.AdamW(parameters or list(model.parameters()), lr=lr)
    images, _, labels, _ = digits.images()
    model.train(parameters is None)
    order = torch.cat([torch.randperm(len(images)) for _ in range(1 + batches * 64 // len(images))])
    for batch in order[: batches * 64].split(64):
        optimizer.zero_grad()
        functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    return model.eval()


def tuned(model: nn.Module, choose: Callable[[nn.Module], Sequence[nn.Parameter]] | None = None) -> nn.Module:
    """A copy, trained on for some batches."""
    model = copy.deepcopy(model)
    return train(model, 1e-4, _TUNED_BATCHES, choose(model) if choose else None)


def adapted(model: nn.Module) -> nn.Module:
    """A copy whose blocks' linear layers got low-rank changes, merged."""
    model = copy.deepcopy(model)
    places = [(block, name, one) for block in model.blocks for name, one in block.named_children()]  # type: ignore[union-attr]
    made = [(block, name, _Adapted(one)) for block, name, one in places if isinstance(one, nn.Linear)]
    for block, name, one in made:
        setattr(block, name, one)
    train(model, 1e-3, _TUNED_BATCHES, [weight for *_, one in made for weight in (one.a, one.b)])
    for block, name, one in made:
        setattr(block, name, one.merged())
    return model


def lower(model: nn.Module, form: str = "fp32") -> dict[str, bytes]:
    """The artifact of each runtime."""
    images = digits.images()[0]
    with quiet():
        captured = capture(make_source(model.eval(), (images[:1],)))
        program, _ = find_form(form).rewrite(captured, [(image,) for image in images[:64].split(1)])
        return {runtime: BACKENDS[runtime].lower(program).data for runtime in RUNTIMES}


def updates() -> Iterator[Update]:
    """All of them, the same every time."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    progress("training networks on digits")
    cnn = train(Convolutions(), 1e-3, 42)
    before = lower(cnn)
    one = tuned(cnn, lambda model: [model.features[9].weight])  # type: ignore[index]
    values = one.features[9].weight.detach().numpy().tobytes()  # type: ignore[index]
    yield from _pairs("one-layer fine-tune", before, lower(one), values)
    yield from _pairs("biases only", before, lower(tuned(cnn, _biases)))
    full = tuned(cnn)
    yield from _pairs("full fine-tune", before, lower(full))
    for form in ("int8", "4bit", "2bit"):
        yield from _pairs(f"re-quantized {form}", lower(cnn, form), lower(full, form))
    binary, _ = binarize(cnn)
    fine_tune(binary, digits.Batches(), epochs=1, lr=1e-3)
    again = copy.deepcopy(binary)
    fine_tune(again, digits.Batches(), epochs=1, lr=1e-4)
    yield from _pairs("re-binarized", lower(binary, "binary"), lower(again, "binary"))
    vit = train(Transformer((0, 1)), 5e-4, 14)
    yield from _pairs("adapter, merged", lower(vit), lower(adapted(vit)))
    folded = train(Transformer((0, 1, 0, 1)), 5e-4, 10)
    changed = tuned(folded, lambda model: list(model.blocks[0].parameters()))  # type: ignore[index]
    yield from _pairs("folded change", lower(folded), lower(changed))


def _biases(model: nn.Module) -> list[nn.Parameter]:
    return [weight for name, weight in model.named_parameters() if name.endswith("bias")]


def _pairs(name: str, old: dict[str, bytes], new: dict[str, bytes], layer: bytes | None = None) -> Iterator[Update]:
    for runtime in RUNTIMES:
        yield Update(name, runtime, old[runtime], new[runtime], layer)
