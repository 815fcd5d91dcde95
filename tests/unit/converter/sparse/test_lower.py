"""Form sparse on the real runtimes: the artifacts compute the same, and layers are sparse where that is faster."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ferryman.converter.api import convert
from ferryman.converter.backends import BACKENDS
from ferryman.converter.capture import capture
from ferryman.converter.quiet import quiet
from ferryman.converter.source import make_source
from ferryman.converter.sparse import lower
from ferryman.converter.sparse.lower import lower_sparse
from ferryman.converter.sparse.measure import LayerTime, layer_table
from ferryman.converter.verify import Interpreter, interpreters
from ferryman.runtime.compare import compare
from ferryman.runtime.contracts.errors import ModelError
from ferryman.runtime.session import open_session
from tests.unit.converter.sparse.test_write import prune

RUNTIMES = ("executorch", "tflite")


class Net(nn.Module):
    """A shortcut, depthwise, strides and dilation, and rows at the end."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU())
        self.expand = nn.Sequential(nn.Conv2d(16, 48, 1), nn.BatchNorm2d(48), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(48, 48, 3, padding=1, groups=48), nn.Hardtanh())
        self.project = nn.Conv2d(48, 16, 1)
        self.wide = nn.Conv2d(16, 32, 3, padding=2, dilation=2)
        self.head = nn.Linear(32, 5)

    def forward(self, image):
        x = self.stem(image)
        x = torch.relu(x + self.project(self.depthwise(self.expand(x))))
        return self.head(self.wide(x).mean((2, 3)))


def lower_dense(captured, runtime="executorch"):
    with quiet():
        return BACKENDS[runtime].lower(captured)


def lower_here(captured, dense, runtime="executorch", places=None, progress=lambda _: None):
    return lower_sparse(captured, runtime, places or interpreters(runtime)[:1], dense, progress)


@pytest.fixture(scope="module")
def program():
    """The network with zeros, captured, and lowered as it is; not to be changed."""
    captured = capture(make_source(prune(Net()), (torch.randn(1, 3, 12, 12),)))
    return captured, lower_dense(captured)


def pretend(monkeypatch, speedup, program=1.0):
    """Layers are as fast as told; so is every whole program beside the dense one."""
    pretend_whole(monkeypatch, program)

    def times(several, _backend, place, _progress):
        return {one: LayerTime(one.path, place.name, one.zeros, 1.0, 1.0 / speedup(one)) for one in several}

    monkeypatch.setattr(lower, "time_layers", times)


def pretend_whole(monkeypatch, speedup=1.0):
    """The whole program is as fast as told: for one so small, measurements differ by more than there is to gain."""

    def beside(paths, *_, **__):
        return [[speedup] * 3] + [[1.0] * 3 for _ in paths[1:]]

    monkeypatch.setattr(lower, "time_beside", beside)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_artifacts_compute_what_eager_does(tmp_path, runtime, monkeypatch):
    pretend_whole(monkeypatch)
    net, image = prune(Net()), torch.randn(2, 3, 20, 18)
    captured = capture(make_source(net, (image,)))
    place = interpreters(runtime)[0]
    made = lower_here(captured, lower_dense(captured, runtime), runtime)
    path = tmp_path / f"net{BACKENDS[runtime].suffix}"
    path.write_bytes(made.lowered.data)
    with open_session(path, runtime, interpreter=place.name) as session:
        (found,) = session.run([image.numpy()])
    (difference,) = compare([net(image).detach().numpy()], [found])
    assert difference.sqnr_db > 110
    assert {one.path for one in made.times} == {"stem.0", "expand.0", "project", "wide", "head"}
    assert sum(made.lowered.lowering.kernels.values()) == sum(one.form == "sparse" for one in made.layers)
    assert "times as fast" in layer_table(made.times)


def test_a_package_says_what_became_of_each_layer(tmp_path, monkeypatch):
    pretend(monkeypatch, lambda one: 2.0 if one.path in {"expand.0", "project"} else 0.5)
    net, image = prune(Net()), torch.randn(1, 3, 20, 18)
    made = convert(net, (image,), form="sparse", to=("tflite",), output=tmp_path, name="net")
    (variant,) = made.manifest.variants
    assert (variant.name, variant.requires.operators) == ("tflite-sparse", 4)
    assert [one.path for one in variant.layers] == ["stem.0", "expand.0", "depthwise.0", "project", "wide", "head"]
    assert {time.path for time in made.layer_times if time.taken} == {"expand.0", "project"}
    assert {one.path for one in variant.layers if one.form == "sparse"} - {"depthwise.0"} == {"expand.0", "project"}
    assert all(proof.sqnr_db > 110 for proof in variant.verified)


def test_layers_that_do_not_gain_stay_dense(program, monkeypatch):
    pretend(monkeypatch, lambda one: 2.0 if one.path == "wide" else 0.5)
    made = lower_here(*program)
    notes = {one.path: (one.form, one.note) for one in made.layers}
    assert notes["wide"][0] == "sparse"
    assert notes["wide"][1].endswith("measured faster alone")
    assert notes["expand.0"][0] == "fp32"
    assert notes["expand.0"][1].endswith("zeros, measured no faster without its zeros")
    assert notes["depthwise.0"] == ("fp32", "0.0% zeros, too few to gain by")
    assert [one.path for one in made.times if one.taken] == ["wide"]


def test_of_ways_as_fast_the_smallest_is_taken(program, monkeypatch):
    pretend(monkeypatch, lambda one: 2.0 if one.path == "wide" else 0.99)
    made = lower_here(*program)
    notes = {one.path: one.note for one in made.layers}
    assert notes["expand.0"].endswith("smaller, and no slower alone")


def test_where_no_layer_gains_nothing_is_made(program, monkeypatch):
    pretend(monkeypatch, lambda one: 0.9 if one.path == "wide" else 0.5)
    with pytest.raises(
        ModelError, match=r"gains nothing without its zeros on executorch: of 5 .* layer wide does best, 0.90"
    ):
        lower_here(*program)


def test_what_is_slower_as_a_whole_is_not_made(program, monkeypatch):
    pretend(monkeypatch, lambda one: 2.0, program=0.9)
    with pytest.raises(ModelError, match="Net is slower without its zeros on executorch, though some of its layers"):
        lower_here(*program)


def test_what_is_slower_on_one_of_two_interpreters_is_not_made(program, monkeypatch):
    pretend(monkeypatch, lambda one: 2.0 if one.path == "wide" else 0.5)

    def beside(paths, interpreter, *_, **__):
        return [[1.1 if interpreter == "quick" else 0.9] * 3] + [[1.0] * 3 for _ in paths[1:]]

    monkeypatch.setattr(lower, "time_beside", beside)
    places = [Interpreter(name, Path(sys.executable)) for name in ("quick", "slow")]
    with pytest.raises(ModelError, match=r"Net is slower without its zeros on slow, though .* or --interpreter"):
        lower_here(*program, places=places)
    assert lower_here(*program, places=places[:1]).times[0].interpreter == "quick"


def test_each_step_is_told_while_nothing_is_redirected(monkeypatch, capfd):
    pretend_whole(monkeypatch, 2.0)
    two = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 1))
    captured = capture(make_source(prune(two), (torch.randn(1, 3, 12, 12),)))
    monkeypatch.setattr(lower, "_NEAR", 1e9)  # some layer is to be sparse, however fast this machine is
    lower_here(captured, lower_dense(captured), progress=print)
    told = capfd.readouterr().out
    assert "lower layer 1 of 2 alone, dense and sparse: 0" in told
    assert "time 2 layers on executorch" in told
    assert "time the whole program, dense and sparse, on executorch" in told
