"""LoRA, Hydra and FLoRA: merged modules against modules that run their branches beside the layer."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from ferryman.converter.adapters import flora, from_peft, hydra, lora, merge, save_adapters
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.updates.adapters import read_adapters, sha256_of


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.line = nn.Conv1d(8, 6, 5, bias=False)
        self.deep = nn.Linear(6, 12)
        self.last = nn.Linear(12, 4, bias=False)

    def forward(self, x):
        y = self.conv(x).flatten(2)
        return self.last(functional.relu(self.deep(functional.relu(self.line(y)).mean(2))))


LAYERS = {"conv": (3, 3, 9, 9), "line": (3, 8, 20), "deep": (3, 6), "last": (3, 12)}


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def through(layer, weight, x):
    """The layer with another weight, and without its bias."""
    other = copy.deepcopy(layer)
    other.weight = nn.Parameter(weight)
    other.bias = None
    return other(x)


def pointwise(layer, factor, y):
    """A linear map of channels, as a 1x1 convolution of the layer's kind where it is one."""
    if isinstance(layer, nn.Linear):
        return functional.linear(y, factor)
    kind = functional.conv2d if y.dim() == 4 else functional.conv1d
    return kind(y, factor.reshape(*factor.shape, *[1] * (y.dim() - 2)))


def merged(net, name, made):
    return merge(net, {f"{name}.{parameter}": one for parameter, one in made.items()}).get_submodule(name)


@pytest.mark.parametrize("name", LAYERS)
def test_lora_merges_to_what_runs_beside_the_layer(net, name):
    layer, x = net.get_submodule(name), torch.randn(LAYERS[name])
    down, up = torch.randn(4, *layer.weight.shape[1:]), torch.randn(len(layer.weight), 4)
    beside = layer(x) + 0.5 * pointwise(layer, up, through(layer, down, x))
    assert torch.allclose(merged(net, name, lora(layer, down, up, 0.5))(x), beside, atol=1e-4)


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_hydra_merges_to_its_two_branches(net, name, parallel):
    layer, x = net.get_submodule(name), torch.randn(LAYERS[name])
    out = len(layer.weight)
    down, up = torch.randn(2, *layer.weight.shape[1:]), torch.randn(out, 2)
    then_down, then_up = torch.randn(2, out) * 0.3, torch.randn(out, 2) * 0.3
    y = layer(x)
    runs = y + 0.25 * pointwise(layer, then_up, pointwise(layer, then_down, y))
    if parallel:
        runs = runs + 0.5 * pointwise(layer, up, through(layer, down, x))
    made = hydra(layer, (down, up) if parallel else None, (then_down, then_up), 0.5, 0.25)
    assert torch.allclose(merged(net, name, made)(x), runs, atol=1e-4)


@pytest.mark.parametrize("name", LAYERS)
def test_flora_merges_to_its_tucker_product(net, name):
    layer, x = net.get_submodule(name), torch.randn(LAYERS[name])
    shape = layer.weight.shape
    ranks = [min(2, size) for size in shape]
    core, sides = torch.randn(ranks), [torch.randn(size, rank) for size, rank in zip(shape, ranks, strict=True)]
    change = core
    for axis, side in enumerate(sides):
        change = torch.tensordot(side, change, ([1], [axis])).movedim(0, axis)
    runs = layer(x) + 0.1 * through(layer, change, x)
    assert torch.allclose(merged(net, name, flora(layer, core, sides, 0.1))(x), runs, atol=1e-4)


@pytest.mark.parametrize("name", ["conv", "deep"])
def test_flora_of_a_convolution_in_stages_is_the_same(net, name):
    """As FLoRA reads: thin to the core's inputs, through the core, and out to the layer's outputs."""
    if name == "deep":
        layer, x = net.deep, torch.randn(LAYERS["deep"])
        core, sides = torch.randn(3, 2), [torch.randn(12, 3), torch.randn(6, 2)]
        stages = functional.linear(functional.linear(functional.linear(x, sides[1].T), core), sides[0])
    else:
        layer, x = net.conv, torch.randn(LAYERS["conv"])
        core, sides = (
            torch.randn(3, 2, 2, 2),
            [torch.randn(size, rank) for size, rank in ((8, 3), (3, 2), (3, 2), (3, 2))],
        )
        window = torch.einsum("oiab,ha,wb->oihw", core, sides[2], sides[3])
        thin = pointwise(layer, sides[1].T, x)
        stages = pointwise(layer, sides[0], functional.conv2d(thin, window, stride=2, padding=1))
    assert torch.allclose(merged(net, name, flora(layer, core, sides))(x), layer(x) + stages, atol=1e-4)


def test_merging_leaves_the_model_alone(net):
    before = copy.deepcopy(net.state_dict())
    made = {f"deep.{name}": one for name, one in lora(net.deep, torch.ones(1, 6), torch.ones(12, 1)).items()}
    other = merge(net, made)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert torch.equal(other.deep.weight, net.deep.weight + 1)


@pytest.mark.parametrize("prefix", ["base_model.model.", ""])
@pytest.mark.parametrize("adapter", ["", ".default"])
def test_peft_checkpoints_are_read(net, prefix, adapter):
    state = {
        f"{prefix}deep.lora_A{adapter}.weight": torch.randn(2, 6),
        f"{prefix}deep.lora_B{adapter}.weight": torch.randn(12, 2),
        f"{prefix}conv.lora_A{adapter}.weight": torch.randn(4, 3, 3, 3),
        f"{prefix}conv.lora_B{adapter}.weight": torch.randn(8, 4, 1, 1),
    }
    found = merge(net, from_peft(net, state, alpha=8))
    a, b = (state[f"{prefix}deep.lora_{side}{adapter}.weight"] for side in "AB")
    assert torch.allclose(found.deep.weight, net.deep.weight + 4 * b @ a, atol=1e-5)
    a, b = (state[f"{prefix}conv.lora_{side}{adapter}.weight"].flatten(1) for side in "AB")
    assert torch.allclose(found.conv.weight, net.conv.weight + 2 * (b @ a).reshape(8, 3, 3, 3), atol=1e-5)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"deep.lora_A.weight": torch.zeros(2, 6)}, "both factors"),
        ({"deep.weight": torch.zeros(2, 6)}, "no LoRA factor"),
        ({"deep.lora_embedding_A": torch.zeros(2, 6)}, "no LoRA factor"),
        ({"deeper.lora_A.weight": torch.zeros(2, 6), "deeper.lora_B.weight": torch.zeros(12, 2)}, "no layer deeper"),
        ({"deep.lora_A.weight": torch.zeros(2, 5), "deep.lora_B.weight": torch.zeros(12, 2)}, "do not make"),
    ],
)
def test_other_checkpoints_are_refused(net, state, words):
    with pytest.raises(CallerError, match=words):
        from_peft(net, state, alpha=1)


def test_layers_without_such_adapters_are_refused():
    for layer in (nn.Conv2d(4, 4, 3, groups=4), nn.Embedding(3, 4), nn.LayerNorm(4)):
        with pytest.raises(CallerError, match="merge it in the model"):
            lora(layer, torch.zeros(1, 4), torch.zeros(4, 1))


def test_other_parameters_are_refused(net):
    made = lora(net.deep, torch.ones(1, 6), torch.ones(12, 1))["weight"]
    with pytest.raises(CallerError, match="no parameter"):
        merge(net, {"depth.weight": made})
    with pytest.raises(CallerError, match="float32"):
        merge(net.double(), {"deep.weight": made})
    with pytest.raises(CallerError, match="its adapter is of"):
        merge(net.float(), {"last.weight": made})


def test_a_file_holds_what_the_adapters_belong_to(net, tmp_path):
    made = {f"deep.{name}": one for name, one in lora(net.deep, torch.ones(1, 6), torch.ones(12, 1)).items()}
    save_adapters(tmp_path / "file", net, made)
    found = read_adapters(tmp_path / "file")
    assert found["deep.weight"].adapter == made["deep.weight"]
    assert found["deep.weight"].base_sha256 == sha256_of(net.deep.weight.detach().numpy())
