"""Sub-networks: what they compute is what the first hidden units of the whole compute, and nothing is stored twice."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import ferryman.converter.api  # noqa: F401  # the toolchains, without their chatter
from ferryman.converter.compress.api import compress
from ferryman.converter.nested import network
from ferryman.converter.nested.mix import mix
from ferryman.converter.nested.network import masked, nest
from ferryman.converter.prune.budget import OverBudgetError, count
from ferryman.runtime.contracts.errors import CallerError, ModelError


class Gated(nn.Module):
    """A feed-forward block with a gate, as in Llama."""

    def __init__(self, width=8, hidden=32):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.gate = nn.Linear(width, hidden), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width)

    def forward(self, x):
        y = self.norm(x)
        return x + self.down(self.up(y) * functional.silu(self.gate(y)))


class Inverted(nn.Module):
    """MobileNetV2's block."""

    def __init__(self, width=8, hidden=32):
        super().__init__()
        self.expand, self.first = nn.Conv2d(width, hidden, 1, bias=False), nn.BatchNorm2d(hidden)
        self.depthwise, self.second = nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden), nn.BatchNorm2d(hidden)
        self.project, self.third = nn.Conv2d(hidden, width, 1), nn.BatchNorm2d(width)

    def forward(self, x):
        y = torch.relu_(self.first(self.expand(x)))
        return x + self.third(self.project(functional.relu6(self.second(self.depthwise(y)))))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, 2, 1)
        self.images = nn.Sequential(Inverted(), Inverted())
        self.rows = nn.Sequential(Gated(), Gated(hidden=24))
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.rows(self.images(self.stem(x)).flatten(2).transpose(1, 2)).mean(1))


IMAGES = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def net():
    torch.manual_seed(0)
    made = Net().eval()
    for part in made.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.running_mean, part.bias.data):
                tensor.normal_()
            for tensor in (part.running_var, part.weight.data):
                tensor.uniform_(0.5, 2)
    return made


def cut(model, ends):
    """The whole with weights of what lies behind set to zero where they are read."""
    made = copy.deepcopy(model)
    for name, end in ends.items():
        made.get_submodule(name).weight.data[:, end:] = 0
    return made


def test_hidden_units_are_found_whatever_stands_between(net):
    found = nest(net, "nested-25-50-100", example=IMAGES)
    assert dict(found.bounds) == {
        "images.0.project": (0, 8, 16, 32),
        "images.1.project": (0, 8, 16, 32),
        "rows.0.down": (0, 8, 16, 32),
        "rows.1.down": (0, 8, 16, 24),
    }
    said = {one.path: (one.decision, one.reason) for one in found.decisions}
    assert said["images.0.depthwise"] == ("nested", "writes 8/16/32 hidden units of images.0.project")
    assert said["rows.0.gate"] == ("nested", "writes 8/16/32 hidden units of rows.0.down")
    assert said["rows.0.down"] == ("nested", "reads 8/16/32 hidden units")
    assert said["stem"] == ("float", "whole: an input of the model")
    assert said["head"][1].startswith("whole: mean")


def test_the_order_changes_no_answer_and_puts_first_what_counts(net):
    found = nest(net, "nested-25-50-100", example=IMAGES)
    assert torch.allclose(found.model(IMAGES), net(IMAGES), atol=1e-5)
    whole = net(IMAGES)
    first = found.variant(25)(IMAGES)
    blind = cut(net, {name: ends[1] for name, ends in found.bounds.items()})(IMAGES)
    assert (first - whole).norm() < (blind - whole).norm()


def test_answers_that_are_no_numbers_stay_so(net):
    with torch.no_grad():
        net.head.weight[0], net.head.bias[1] = torch.nan, torch.inf
    made, answer = nest(net, "nested-50-100", example=IMAGES).model(IMAGES), net(IMAGES)
    assert bool(answer[:, 0].isnan().all())
    assert torch.allclose(made, answer, atol=1e-5, equal_nan=True)


def test_a_sub_network_is_the_whole_without_what_lies_behind(net):
    found = nest(net, "nested-25-50-100", example=IMAGES)
    for at, (name, module) in zip((3, 2, 1), found.variants().items(), strict=True):
        expected = cut(found.model, {axis: ends[at] for axis, ends in found.bounds.items()})
        assert torch.allclose(module(IMAGES), expected(IMAGES), atol=1e-5), name
    mixed = found.variant({"rows.0.down": 25, "images.1.project": 50})
    expected = cut(found.model, {"rows.0.down": 8, "images.1.project": 16})
    assert torch.allclose(mixed(IMAGES), expected(IMAGES), atol=1e-5)
    with masked(found.model, {"rows.0.down": 8, "images.1.project": 16}):
        assert torch.allclose(mixed(IMAGES), found.model(IMAGES), atol=1e-5)


def test_sub_networks_hold_the_same_tensors(net):
    found = nest(net, "nested-25-50-100", example=IMAGES)
    sizes = {name: sum(one.nbytes for one in module.parameters()) for name, module in found.variants().items()}
    together = {id(one): one.nbytes for module in found.variants().values() for one in module.parameters()}
    assert sizes["25"] < sizes["50"] < sizes["100"]
    assert sum(together.values()) == sizes["100"]


def test_training_makes_small_ones_answer(net):
    torch.manual_seed(0)
    labels = (IMAGES.new_tensor(range(64)) % 10).long()
    images = torch.randn(64, 1, 8, 8) + labels.reshape(-1, 1, 1, 1)
    loader = list(zip(images.split(16), labels.split(16), strict=True))
    ordered = nest(net, "nested-25-100-ordered", example=IMAGES, loader=loader, epochs=2)
    assert len(ordered.losses) == 2
    trained = nest(net, "nested-25-100", example=IMAGES, loader=loader, epochs=12, lr=1e-2, distil=False)
    assert not trained.model.training
    assert not trained.model.get_submodule("rows.0.down")._forward_pre_hooks
    plain = nest(net, "nested-25-100", example=IMAGES)
    norm = trained.model.get_submodule("images.0.third")
    assert torch.equal(norm.running_mean, net.get_submodule("images.0.third").running_mean)
    assert norm.track_running_stats
    assert not torch.equal(norm.weight, net.get_submodule("images.0.third").weight)
    for found in (trained, plain):
        with masked(found.model, {name: ends[1] for name, ends in found.bounds.items()}), torch.no_grad():
            found_loss = functional.cross_entropy(found.model(images), labels)
        found.model.loss = float(found_loss)
    assert trained.model.loss < 0.7 * plain.model.loss


def test_compress_gives_the_variants(net):
    made = compress(net, "nested-25-50-100", example=IMAGES)
    assert (made.form, list(made.variants)) == ("fp32", ["100", "50", "25"])


def test_levels_are_mixed_within_a_budget(net):
    found = nest(net, "nested-25-50-100", example=IMAGES)
    mixed = mix(found, 70, example=IMAGES)
    assert count(found.variant(mixed.levels), (IMAGES,)).macs == pytest.approx(
        mixed.kept * count(found.variant(100), (IMAGES,)).macs
    )
    assert mixed.kept <= 0.7
    assert not any("batch_norm" in str(node.target) for node in found.variant(100).graph.nodes)
    with masked(
        found.model, {name: found.bounds[name][1 + (25, 50, 100).index(mixed.levels[name])] for name in mixed.levels}
    ):
        lost = (found.model(IMAGES) - net(IMAGES)).square().sum() / net(IMAGES).square().sum()
    for level in (25, 50):  # nothing of one level alone is better in the budget
        alike = found.variant(level)
        if count(alike, (IMAGES,)).macs <= 0.7 * count(found.variant(100), (IMAGES,)).macs:
            assert lost <= (alike(IMAGES) - net(IMAGES)).square().sum() / net(IMAGES).square().sum()
    assert mix(found, 100, example=IMAGES).error == 0
    with pytest.raises(OverBudgetError, match=r"no sub-network keeps to 1 percent of the bytes: the smallest has \d"):
        mix(found, 1, "bytes", example=IMAGES)


def test_a_budget_of_latency_is_measured(net):
    found = nest(net, "nested-25-50-100", example=IMAGES)
    asked = []

    def latency(module):
        asked.append(module)
        return 1e-5 + 1e-9 * count(module, (IMAGES,)).macs

    mixed = mix(found, 80, "latency", example=IMAGES, latency=latency, loader=[(IMAGES, torch.tensor([1, 2]))])
    assert mixed.kept <= 0.8
    assert latency(found.variant(mixed.levels)) / latency(found.variant(100)) == pytest.approx(mixed.kept)
    assert len(asked) < 12  # the two inverted blocks are alike


@pytest.mark.parametrize(
    ("percent", "unit"), [(0, "flops"), (101, "flops"), (50, "watts"), (50, "latency"), (float("nan"), "bytes")]
)
def test_another_budget_is_refused(net, percent, unit):
    with pytest.raises(CallerError, match="a budget is"):
        mix(nest(net, "nested-25-100", example=IMAGES), percent, unit, example=IMAGES)


def test_what_cannot_be_nested_is_said(net):
    found = nest(net, "nested-25-100", example=IMAGES)
    with pytest.raises(CallerError, match="there is no axis 'head'; there are: images"):
        found.variant({"head": 25})
    with pytest.raises(CallerError, match="level 30 is none of 25, 100"):
        found.variant(30)
    with pytest.raises(ModelError, match="Linear has no hidden units to nest: weight: an input of the model"):
        nest(nn.Linear(4, 4).eval(), "nested-50-100", example=torch.randn(1, 4))


class Odd(nn.Module):
    """Hidden units that are mixed, read twice, or whose weights are shared."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)
        self.scale = nn.Parameter(torch.randn(16))

    def forward(self, x):
        y = self.a(x)
        if self.kind == "twice":
            return self.b(torch.relu(y)) + y[..., :8]
        if self.kind == "tied":
            return self.b(torch.relu(self.a(x))) + self.b(y)
        return self.b(MIXERS[self.kind](self, y))


MIXERS = {
    "norm": lambda net, y: net.norm(y),
    "softmax": lambda _, y: torch.softmax(y, -1),
    "cat": lambda _, y: torch.cat([y[..., :8], y[..., 8:]], -1),
    "scale": lambda net, y: y * net.scale,
    "flip": lambda _, y: torch.relu(y).flip(-1),
}


@pytest.mark.parametrize("kind", ["twice", "tied", *MIXERS])
def test_units_that_do_more_stay_whole(kind):
    with pytest.raises(ModelError, match="Odd has no hidden units to nest"):
        nest(Odd(kind).eval(), "nested-50-100", example=torch.randn(3, 8))


class Elsewhere(nn.Module):
    """Parameters of hidden units that are read elsewhere too, or numbers that are not the same for all of them."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.a, self.b = nn.Linear(8, 32), nn.Linear(32, 4)
        self.c, self.d = nn.Linear(8, 32), nn.Linear(32, 4)
        self.register_buffer("low", -torch.rand(32))
        if kind == "tied biases":
            self.c.bias = self.a.bias

    def forward(self, x):
        y = self.a(x)
        if self.kind == "bias":
            return self.b(torch.relu(y)), self.a.bias.cumsum(0)
        if self.kind == "tied biases":
            return self.b(torch.relu(y)) + self.d(torch.relu(self.c(x)))
        return self.b(BOUNDS[self.kind](self, x, y))


BOUNDS = {
    "clamp": lambda net, _, y: torch.clamp(y, net.low, -net.low),
    "clamp_min": lambda net, _, y: torch.clamp_min(y, net.low),
    "pow": lambda net, _, y: y.abs().pow(-net.low),
    "bound of another": lambda net, x, y: y.clamp(max=net.c(x)),
}


@pytest.mark.parametrize("kind", ["bias", "tied biases", *BOUNDS])
def test_what_is_read_elsewhere_stays_whole(kind):
    with pytest.raises(ModelError, match="Elsewhere has no hidden units to nest"):
        nest(Elsewhere(kind).eval(), "nested-50-100", example=torch.randn(3, 8))


def test_a_norm_of_two_axes_keeps_both_whole():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(16)
            self.a, self.b, self.c, self.d = (nn.Conv2d(*io, 1) for io in ((3, 16), (16, 8), (8, 16), (16, 4)))

        def forward(self, x):
            x = self.b(torch.relu(self.norm(self.a(x))))
            return self.d(torch.relu(self.norm(self.c(torch.relu(x)))))

    with pytest.raises(ModelError, match="its weights are read elsewhere as well"):
        nest(Twice().eval(), "nested-50-100-a16", example=torch.randn(1, 3, 4, 4))


def test_what_was_not_seen_is_found_out(monkeypatch, net):
    monkeypatch.setattr(network, "parameters", lambda axis: {axis.reader: ((axis.reader.args[1], 1),)})
    with pytest.raises(ModelError, match="Net with its hidden units in order answers something else than before"):
        nest(net, "nested-25-100", example=IMAGES)


def test_chains_take_every_other_layer():
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3)).eval()
    image = torch.randn(1, 3, 12, 12)
    found = nest(net, "nested-50-100", example=image)
    assert dict(found.bounds) == {"2": (0, 8, 16)}
    assert torch.allclose(found.variant(100)(image), net(image), atol=1e-5)
