"""The networks of the pruned forms: trained, given zeros, converted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from ferryman.converter.api import convert
from ferryman.converter.capture import capture
from ferryman.converter.source import make_source
from ferryman.runtime.package import open_package
from ferryman.runtime.session import open_session
from tests.zoo import bayesian_nets, dass_nets
from tests.zoo.detection import CELLS, Canvases, canvases, mean_average_precision
from tests.zoo.pruned import NETWORKS, Crops, Shuffled, Text, rows
from tests.zoo.pruned_nets import CLASSES, STRIDE

LEAST_DB = 60.0


def small(name):
    """A network with little data."""
    torch.manual_seed(0)
    network = NETWORKS[name]
    inputs, wanted = network.held_out()
    batches = {
        "detector": lambda: Canvases(32, 8),
        "super_resolution": lambda: Crops(2, 2),
        "decoder": lambda: Text(2, 4),
    }
    digits = NETWORKS["resnet"].batches()
    made = batches.get(name, lambda: Shuffled(digits.inputs[:64], digits.targets[:64], 32))()
    return replace(network, batches=lambda: made, held_out=lambda: (inputs[:3], wanted[:3]), epochs=1)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_trains_takes_zeros_and_is_scored(name):
    network = small(name)
    model = network.train()
    made = network.sparsify("sparse-75", epochs=1)(model)

    assert not model.training
    assert all(bool(value.isfinite().all()) for value in made.state_dict().values())
    of_module = network.score(made)
    with torch.no_grad():
        assert network.score(lambda arrays: [made(torch.from_numpy(arrays[0])).numpy()]) == pytest.approx(
            of_module, abs=1e-4
        )
    assert {"accuracy": 0, "mAP@0.5": 0, "PSNR dB": 5, "loss nats": 1}[network.metric] <= of_module


def encoded(target):
    """Outputs that say just what a target says."""
    outputs = torch.full((5 + CLASSES, CELLS, CELLS), -20.0)
    for y, x in target[0].nonzero().tolist():
        _, centre_x, centre_y, width, height, number = target[:, y, x].tolist()
        shares = torch.tensor([centre_x / STRIDE - x, centre_y / STRIDE - y, width / 24, height / 24])
        outputs[0, y, x] = 20
        outputs[1:5, y, x] = torch.logit(shares.clamp(1e-6, 1 - 1e-6))
        outputs[5 + int(number), y, x] = 20
    return outputs


def test_mean_average_precision_counts_what_is_found():
    torch.manual_seed(0)
    _, targets = canvases(20, test=True)
    perfect = torch.stack([encoded(target) for target in targets])
    assert mean_average_precision(perfect, targets) == 1
    assert mean_average_precision(torch.full_like(perfect, -20.0), targets) == 0

    elsewhere = perfect.clone()
    elsewhere[:, 3:5] = -3  # boxes of a pixel or so
    assert mean_average_precision(elsewhere, targets) == 0
    other_class = torch.cat([perfect[:, :5], perfect[:, 5:].roll(1, 1)], 1)
    assert mean_average_precision(other_class, targets) < 0.05

    half = perfect.clone()
    half[::2, 0] = -20
    assert 0.3 < mean_average_precision(half, targets) < 0.7


def test_rows_say_what_became_of_a_network(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr("tests.zoo.pruned.trained", lambda _: nn.Sequential(nn.Flatten(), nn.Linear(256, 10)))
    network = NETWORKS["resnet"]

    found = list(rows(network, [("half", network.cut("sparse-50"))]))

    assert [(row.network, row.form, row.metric, row.parameters) for row in found] == [
        ("resnet", "dense", "accuracy", 2570),
        ("resnet", "half", "accuracy", 2570),
    ]
    assert [round(row.zeros, 3) for row in found] == [0, 0.498]


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_converts_on_both_runtimes_and_scores_the_same(name, tmp_path):
    network = small(name)
    model = network.cut("sparse-75")(network.train())
    assert capture(make_source(model, network.example)).example

    made = convert(model, network.example, name=name.replace("_", "-"), output=tmp_path)

    assert {proof.sqnr_db >= LEAST_DB for variant in made.manifest.variants for proof in variant.verified} == {True}
    assert {variant.runtime for variant in made.manifest.variants} == {"executorch", "tflite"}
    with open_package(made.path) as package:
        for variant in made.manifest.variants:
            artifact = tmp_path / variant.payload.replace("/", "_")
            artifact.write_bytes(package.read(variant.payload))
            with open_session(artifact, variant.runtime) as session:
                assert network.score(session.run) == pytest.approx(network.score(model), abs=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "lost"), [("densenet", 0.02), ("super_resolution", 1.0), ("decoder", 0.3)])
def test_zeros_that_come_while_training_leave_most(name, lost):
    network = NETWORKS[name]
    dense, at_once, trained = rows(
        network, [("at once", network.cut("sparse-90")), ("trained", network.sparsify("sparse-90"))]
    )
    sign = 1 if network.better == "higher" else -1
    assert sign * (trained.score - dense.score) > -lost
    assert sign * (trained.score - at_once.score) > 2 * lost
    assert trained.zeros == at_once.zeros > 0.8


@pytest.mark.slow
def test_cells_that_were_searched_convert(tmp_path):
    module, example = dass_nets.dass_cells()
    assert NETWORKS["resnet"].score(module) > 0.97
    made = convert(module, example, name="dass", output=tmp_path)
    assert all(proof.sqnr_db >= LEAST_DB for variant in made.manifest.variants for proof in variant.verified)


@pytest.mark.slow
def test_a_bayesian_mean_and_ensemble_convert(tmp_path):
    network = NETWORKS["resnet"]
    for factory in (bayesian_nets.bayesian_mean, bayesian_nets.bayesian_ensemble):
        module, example = factory()
        assert network.score(module) > 0.93
        made = convert(module, example, name=factory.__name__.replace("_", "-"), output=tmp_path)
        assert all(proof.sqnr_db >= LEAST_DB for variant in made.manifest.variants for proof in variant.verified)

    images, labels = network.held_out()
    believed = module.believe(images)
    wrong = believed.probabilities.argmax(1) != labels
    assert float(believed.entropy[wrong].mean()) > 2 * float(believed.entropy[~wrong].mean())
    assert float(believed.disagreement[wrong].mean()) > 2 * float(believed.disagreement[~wrong].mean())
