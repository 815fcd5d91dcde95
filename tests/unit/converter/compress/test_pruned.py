"""Sparse and pruned forms through the front: what is asked for comes back, and what cannot be is said."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.compress.api import compress
from ferryman.converter.prune.recipe import Pruning
from ferryman.converter.prune.unstructured.recipe import Sparsity
from ferryman.runtime.contracts.errors import CallerError, ModelError


def net(channels: int = 16) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4),
    ).eval()  # fmt: skip


def batches(targets=None) -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(1)
    wanted = torch.randint(0, 4, (8,)) if targets is None else targets
    return [(torch.randn(8, 1, 6, 6), wanted)] * 2


@pytest.mark.parametrize("form", ["sparse-75", Sparsity(percent=75.0), "sparse-2:4-shrink"])
def test_sparse_forms_are_converted_as_sparse(form):
    made = compress(net(), form, loader=batches(), epochs=1)
    assert (made.form, len(made.losses)) == ("sparse", 1)
    assert float((made.model[3].weight == 0).float().mean()) >= 0.4
    assert {one.decision for one in made.decisions} == {"sparse", "float"}


@pytest.mark.parametrize("form", ["pruned-60flops", Pruning(percent=60, unit="flops", criterion="taylor")])
def test_pruned_forms_are_dense_and_smaller(form):
    made = compress(net(), form, loader=batches(), epochs=1)
    assert (made.form, len(made.losses)) == ("fp32", 1)
    assert made.model[0].out_channels == 8


def test_without_data_weights_alone_decide():
    assert compress(net(), "sparse-50").losses == ()
    assert compress(net(), "pruned-60flops", example=(torch.randn(1, 1, 6, 6),)).losses == ()


def test_a_latency_budget_asks_what_is_given():
    def seconds(model):
        return 1e-3 * sum(one.weight.numel() for one in model.modules() if isinstance(one, nn.Conv2d))

    made = compress(net(), "pruned-60latency", example=(torch.randn(1, 1, 6, 6),), latency=seconds)
    assert seconds(made.model) <= 0.6 * seconds(net())


@pytest.mark.parametrize(
    ("form", "options", "said"),
    [
        ("sparse-90", {"loader": 3}, "loader gives batches when it is iterated over, found int"),
        ("sparse-90", {"loader": batches(torch.randn(8, 1))}, r"targets are float32\[8, 1\], no class numbers: give"),
        ("pruned-60flops", {"loader": batches(torch.randn(8))}, "no class numbers"),
        ("pruned-60flops", {"loader": batches(), "loss": lambda *_: 1.0}, "the loss gives no number that depends"),
        ("pruned-60flops-taylor", {"loader": batches(), "loss": lambda out, _: out}, "cannot be scored by taylor"),
        ("pruned-60flops-lrp", {"loader": batches(torch.full((8,), 9))}, "cannot be scored by lrp"),
        ("pruned-60flops", {}, "needs an example, positional inputs of one call, or a loader"),
        ("pruned-1flops", {"loader": batches()}, "cannot be reached: the least is"),
        ("pruned-60latency", {"loader": batches()}, "latency"),
        ("sparse-90", {"loader": batches(), "rank": 4}, "for form binary"),
        ("4bit", {"loader": batches(), "loss": functional.mse_loss}, "for sparse, pruned and folded forms"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(form, options, said):
    with pytest.raises(CallerError, match=said):
        compress(net(), form, epochs=1, **options)


def test_layers_that_a_budget_cannot_touch_are_named():
    class Halves(nn.Module):
        """The code says how wide each half is, so that no channel can go."""

        def __init__(self):
            super().__init__()
            self.one, self.two, self.three = nn.Conv2d(1, 32, 3), nn.Conv2d(16, 4, 1), nn.Conv2d(16, 4, 1)

        def forward(self, x):
            first, second = torch.split(self.one(x), [16, 16], 1)
            return self.two(first) + self.three(second)

    with pytest.raises((CallerError, ModelError), match=r"(kept whole are|can be pruned: ).*one: the code around it"):
        compress(Halves().eval(), "pruned-20flops", example=(torch.randn(1, 1, 8, 8),))


def test_the_last_layer_of_an_attention_module_takes_part():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    made = compress(layer, "sparse-80-layer", example=(torch.randn(1, 5, 16),))
    assert float((made.model.self_attn.out_proj.weight == 0).float().mean()) == pytest.approx(0.8, abs=0.01)
