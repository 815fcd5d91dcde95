from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.compress.api import compress
from ferryman.converter.fold.merge import merge
from ferryman.runtime.contracts.errors import CallerError, ModelError


def settled(*parts: nn.Module) -> nn.Module:
    """In eval mode, with batch norms that do something."""
    model = parts[0] if len(parts) == 1 else nn.Sequential(*parts)
    torch.manual_seed(0)
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean.normal_(0, 0.5)
            part.running_var.uniform_(0.5, 2)
            nn.init.normal_(part.weight, 1, 0.3)
            nn.init.normal_(part.bias, 0, 0.3)
    return model.eval()


def layers(model: nn.Module) -> list[str]:
    """What computes."""
    return [type(part).__name__ for part in model.modules() if isinstance(part, nn.modules.conv._ConvNd | nn.Linear)]


def same(made: nn.Module, model: nn.Module, x: torch.Tensor) -> None:
    """See that both answer the same, also to other values and to another batch size."""
    torch.manual_seed(1)
    for one in (x, torch.randn_like(x), torch.randn(3, *x.shape[1:])):
        assert torch.allclose(made(one), model(one), rtol=1e-4, atol=1e-4)


IMAGE = torch.randn(1, 4, 9, 11)


class Sum(nn.Module):
    """Branches, added up."""

    def __init__(self, *branches: nn.Module, itself: float = 0.0) -> None:
        super().__init__()
        self.branches, self.itself = nn.ModuleList(branches), itself

    def forward(self, x):
        y = self.branches[0](x)
        for one in self.branches[1:]:
            y = y + one(x)
        return functional.relu(y + self.itself * x if self.itself else y)


CHAINS = {
    "norm after": (nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)),
    "norm before": (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2)),
    "norms of rows": (nn.Flatten(), nn.Linear(396, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)),
    "1x1 twice": (nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 5, 1)),
    "3x3 then 1x1": (nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
    "1x1 then 3x3 without a border": (nn.Conv2d(4, 6, 1), nn.Conv2d(6, 5, 3)),
    "1x1 without bias then 3x3": (nn.Conv2d(4, 6, 1, bias=False), nn.Conv2d(6, 5, 3, padding=1)),
    "steps": (nn.Conv2d(4, 8, 2, 2, padding=1), nn.Conv2d(8, 3, 1, 2)),
    "a patch of patches": (nn.Conv2d(4, 16, 3, 3), nn.Conv2d(16, 3, 2, 2)),
    "dead activations": (nn.Conv2d(4, 6, 1), nn.LeakyReLU(1.0), nn.Conv2d(6, 5, 1), nn.PReLU(5, 1.0), nn.Dropout()),
    "branches": (Sum(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),),
    "branches of unlike windows": (
        Sum(nn.Conv2d(4, 6, 5, 2, 2), nn.Conv2d(4, 6, (1, 3), 2, (0, 1)), nn.Conv2d(4, 6, 1, 2)),
    ),
    "grouped branches": (
        Sum(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 4, 1, groups=4), nn.BatchNorm2d(4)),
    ),
    "a scaled identity": (Sum(nn.Conv2d(4, 4, 3, padding=1), itself=0.5),),
}


@pytest.mark.parametrize("name", CHAINS)
def test_what_can_be_one_layer_is(name):
    model = settled(*copy.deepcopy(CHAINS[name]))
    before = copy.deepcopy(model.state_dict())
    made = merge(model, IMAGE)
    assert len(layers(made.model)) == 1
    assert made.layers == (len(layers(model)), 1)
    assert not any(isinstance(one, nn.modules.batchnorm._BatchNorm) for one in made.model.modules())
    same(made.model, model, IMAGE)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert any(one.decision == "merged" or "takes in" in one.reason for one in made.decisions)


def test_lines_and_volumes_are_merged_too():
    line = settled(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4), nn.Conv1d(4, 2, 3))
    made = merge(line, torch.randn(1, 3, 8))
    assert layers(made.model) == ["Conv1d"]
    same(made.model, line, torch.randn(1, 3, 8))
    volume = settled(nn.Conv3d(2, 3, 1), nn.BatchNorm3d(3), nn.Conv3d(3, 2, (1, 2, 3)))
    made = merge(volume, torch.randn(1, 2, 3, 4, 5))
    assert layers(made.model) == ["Conv3d"]
    same(made.model, volume, torch.randn(1, 2, 3, 4, 5))


KEPT = {
    "a bias at the border": (nn.Conv2d(4, 6, 1), nn.Conv2d(6, 5, 3, padding=1)),
    "two borders": (nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, padding=1)),
    "more work": (nn.Conv2d(4, 1, 1, bias=False), nn.Conv2d(1, 4, 3)),
    "an activation": (nn.Conv2d(4, 6, 1), nn.ReLU(), nn.Conv2d(6, 5, 1)),
    "a depthwise one": (nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 1)),
    "an offset at the border": (nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)),
    "unlike steps": (Sum(nn.Conv2d(4, 4, 1, 1), nn.Conv2d(4, 4, 3, 1, 1, groups=2)),),
    "crossed windows": (Sum(nn.Conv2d(4, 4, (1, 5), padding=(0, 2)), nn.Conv2d(4, 4, (5, 1), padding=(2, 0))),),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_would_not_be_exact_or_take_more_stays(name):
    model = settled(*copy.deepcopy(KEPT[name]))
    with pytest.raises(ModelError, match="nothing of the model can be merged"):
        merge(model, IMAGE)


class Shared(nn.Module):
    """One convolution, called twice, each time with a norm of its own."""

    def __init__(self):
        super().__init__()
        self.conv, self.norms = nn.Conv2d(4, 4, 1), nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))
        self.last, self.scale = nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x):
        for norm in self.norms:
            x = functional.relu(norm(self.conv(x)))
        return self.scale(self.last(x))


def test_shared_weights_stay_shared():
    model = settled(Shared())
    made = merge(model, IMAGE)
    assert layers(made.model) == ["Conv2d", "Conv2d"]
    same(made.model, model, IMAGE)
    decisions = {one.path: one for one in made.decisions}
    assert decisions["norms.0"].decision == decisions["conv"].decision == "kept"
    assert decisions["scale"].reason == "part of last"
    assert decisions["last"].reason == "takes in scale"
    assert sum(one.numel() for one in made.model.parameters()) < sum(one.numel() for one in model.parameters())


class Tied(nn.Module):
    """An embedding and a head of one table; a mask and a scale that depend on no input."""

    def __init__(self):
        super().__init__()
        self.table, self.middle, self.more = nn.Embedding(10, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 10)
        self.head.weight = self.table.weight
        self.register_buffer("raw", torch.randn(3, 3))

    def forward(self, ids):
        weights = torch.softmax(self.raw.tril() * 2, -1)
        return self.head(self.more(self.middle(weights @ self.table(ids))))


def test_ties_stay_and_constants_are_computed_once():
    model = Tied().eval()
    ids = torch.randint(0, 10, (1, 3))
    made = merge(model, ids)
    assert made.layers == (3, 2)
    other = torch.randint(0, 10, (4, 3))
    assert torch.allclose(made.model(other), model(other), atol=1e-5)
    targets = [str(node.target) for node in made.model.graph.nodes]
    assert not any("softmax" in one or "tril" in one for one in targets)
    weights = [one for name, one in made.model.named_parameters() if one.shape == (10, 8)]
    assert len(weights) == 1
    assert made.model.head.weight is weights[0]


class Answers(nn.Module):
    """Several inputs, answers in a dict, sizes that are read."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 5, 1)

    def forward(self, image, by):
        y = self.two(self.one(image)) * by
        return {"sum": y.view(image.shape[0], -1).sum(1), "parts": (y, image)}


def test_the_call_stays_what_it_was():
    model = Answers().eval()
    made = compress(model, "merged", example=(IMAGE, torch.tensor([2.0])))
    assert made.form == "fp32"
    assert [one.decision for one in made.decisions] == ["merged", "kept"]
    found, expected = (one(IMAGE, torch.tensor([3.0])) for one in (made.model, model))
    assert found.keys() == expected.keys()
    assert torch.allclose(found["sum"], expected["sum"], rtol=1e-4)
    assert torch.allclose(found["parts"][0], expected["parts"][0], atol=1e-5)


def test_other_forms_follow():
    torch.manual_seed(0)
    model = settled(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    merged = compress(model, "merged", example=IMAGE).model
    sparse = compress(merged, "sparse-90", example=IMAGE)
    assert [one.path for one in sparse.decisions] == ["0", "3"]
    assert float((sparse.model.get_submodule("3").weight == 0).float().mean()) > 0.8


def test_what_cannot_be_is_refused():
    model = settled(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    with pytest.raises(CallerError, match="keep, rank and estimator are for form binary"):
        compress(model, "merged", example=IMAGE, keep=["0"])
    with pytest.raises(CallerError, match="blocks is for folded forms"):
        compress(model, "merged", example=IMAGE, blocks="0")
    with pytest.raises(CallerError, match="needs an example"):
        compress(model, "merged")
    with pytest.raises(CallerError, match="the model fails with the example"):
        merge(model, torch.randn(1, 5, 4, 4))


class Calls(nn.Module):
    """Two linear layers, and something done with them."""

    def __init__(self, then):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.then = then

    def forward(self, x):
        return self.then(self, x, self.two(self.one(x)))


ROWS = torch.randn(2, 8)


@pytest.mark.parametrize(
    "then",
    [
        lambda _, x, y: y / x.shape[0],
        lambda _, x, y: y + torch.ones(x.shape[0], 8).cumsum(0),
        lambda net, x, y: net.one(net.two(x)) if x.shape[0] > 4 else y,
    ],
)
def test_another_batch_size_computes_the_same_or_is_refused(then):
    model = Calls(then).eval()
    made = compress(model, "merged", example=ROWS).model
    assert torch.allclose(made(ROWS), model(ROWS), atol=1e-5)
    five = torch.randn(5, 8)
    with contextlib.suppress(CallerError):
        assert torch.allclose(made(five), model(five), atol=1e-5)


def test_a_network_for_one_batch_size_says_so():
    model = Calls(lambda net, x, y: net.one(net.two(x)) if x.shape[0] > 4 else y).eval()
    made = compress(model, "merged", example=ROWS).model
    with pytest.raises(CallerError, match=r"is for inputs of shapes \[\(2, 8\)\], found \[\(5, 8\)\]"):
        made(torch.randn(5, 8))


def test_copies_before_views_may_go():
    model = Calls(lambda _, x, y: y.reshape(-1, 2, 4).permute(0, 2, 1).contiguous().view(len(x), 8)).eval()
    made = compress(model, "merged", example=ROWS).model
    assert torch.allclose(made(ROWS), model(ROWS), atol=1e-5)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), encoder).eval()
    made = compress(model, "merged", example=torch.randn(2, 5, 8)).model
    words = torch.randn(4, 5, 8)
    assert torch.allclose(made(words), model(words), atol=1e-5)


def test_dtypes_stay():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x, numbers):
            return self.two(self.one(x)), numbers + x * 0

    model = Two().eval()
    made = compress(model, "merged", example=(ROWS, torch.ones(2, 8, dtype=torch.int64))).model
    assert made(ROWS, torch.ones(2, 8, dtype=torch.int64))[1].dtype == torch.float32


def test_products_written_out_are_layers_too():
    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)

        def forward(self, x):
            return (self.one(x) @ self.two.weight) * 2.0

    model = Written().eval()
    made = merge(model, ROWS)
    assert made.layers == (2, 1)
    assert torch.allclose(made.model(ROWS), model(ROWS), atol=1e-5)


class Scaled(nn.Module):
    """A layer of what is multiplied by a number that is an input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 8), nn.Linear(8, 8)

    def forward(self, x, factor):
        return self.second(self.first(factor * x)) + factor


def test_an_input_without_dimensions_is_no_scale_of_channels():
    model, args = Scaled().eval(), (torch.randn(2, 16), torch.tensor(0.7))
    made = merge(model, args).model
    assert layers(made) == ["Linear"]
    assert torch.allclose(made(torch.ones(2, 16), torch.tensor(0.3)), model(torch.ones(2, 16), torch.tensor(0.3)))


class Kinds(nn.Module):
    """Other than float32."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 8), nn.Linear(8, 8)

    def forward(self, x):
        y = self.second(self.first(x))
        return y, y > 0, y.argmax(-1), y.half()


def test_outputs_are_of_any_kind():
    x = torch.randn(5, 16)
    model = Kinds().eval()
    made = merge(model, x).model
    assert layers(made) == ["Linear"]
    for one, other in zip(made(x), model(x), strict=True):
        assert one.dtype == other.dtype
        assert torch.allclose(one.double(), other.double(), atol=1e-3)
