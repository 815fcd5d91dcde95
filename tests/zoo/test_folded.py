"""Folded and merged networks: trained, folded, converted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from ferryman.converter.api import convert
from ferryman.runtime.package import open_package
from ferryman.runtime.session import open_session
from tests.zoo.folded import BLOCKS, NETS, make, rows
from tests.zoo.pruned import Shuffled, Text
from tests.zoo.pruned_nets import CharacterDecoder

LEAST_DB = 60.0
FOLDED = {"deep": "folded-2-similar", "vanilla": "merged", "branches": "merged"}


def small(name):
    """A network with little data; a decoder of two blocks."""
    network = NETS[name]()
    if name == "deep":
        network = replace(network, make=lambda: CharacterDecoder(32, 2))
        data = Text(2, 4)
    else:
        whole = network.batches()
        data = Shuffled(whole.inputs[:64], whole.targets[:64], 32)
    inputs, wanted = network.held_out()
    return replace(network, batches=lambda: data, held_out=lambda: (inputs[:3], wanted[:3]), epochs=2)


@pytest.mark.parametrize("name", NETS)
def test_a_folded_network_converts_and_scores_the_same(name, tmp_path):
    network = small(name)
    model = make(network, network.train(), FOLDED[name], 1)
    made = convert(model, network.example, name=name, output=tmp_path)

    assert {proof.sqnr_db >= LEAST_DB for variant in made.manifest.variants for proof in variant.verified} == {True}
    assert {variant.runtime for variant in made.manifest.variants} == {"executorch", "tflite"}
    assert bool(made.shared) == (name == "deep")
    with open_package(made.path) as package:
        for variant in made.manifest.variants:
            artifact = tmp_path / variant.payload.replace("/", "_")
            artifact.write_bytes(package.read(variant.payload))
            with open_session(artifact, variant.runtime) as session:
                assert network.score(session.run) == pytest.approx(network.score(model), abs=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vanilla", "branches"])
def test_merging_changes_no_answer(name):
    network = NETS[name]()
    model = network.train()
    as_trained, merged = rows(name, model)
    assert as_trained.score > 0.95
    assert merged.score == as_trained.score
    assert merged.layers < 0.75 * as_trained.layers
    assert merged.parameters < as_trained.parameters
    images, _ = network.held_out()
    with torch.no_grad():
        answers, others = model(images), make(network, model, "merged")(images)
    assert float((answers - others).abs().max()) <= 1e-4 * float(answers.abs().max())
    assert not any(isinstance(one, nn.BatchNorm2d) for one in make(network, model, "merged").modules())


@pytest.mark.slow
def test_the_cure_wins_back_what_sharing_takes(monkeypatch):
    text = Text(60, 16)
    network = replace(NETS["deep"](), make=lambda: CharacterDecoder(48, BLOCKS), batches=lambda: text, epochs=5)
    monkeypatch.setitem(NETS, "deep", lambda: network)
    forms = ("folded-1-drop25-similar-plain", "folded-1-drop25-plain", "folded-1-drop25", "folded-4-plain", "folded-4")
    dense, alike, gates, dropped, plain, cured = rows("deep", forms=forms)
    assert plain.score - dense.score > 3 * (cured.score - dense.score)
    assert cured.parameters == plain.parameters < 0.3 * dense.parameters
    assert dropped.score < gates.score < alike.score
