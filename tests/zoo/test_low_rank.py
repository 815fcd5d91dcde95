"""Networks of low ranks on real data, and of one-way filters: scored and converted."""

from __future__ import annotations

import pytest
import torch

from ferryman.converter.api import convert
from ferryman.converter.low_rank.factorize import factorize
from ferryman.runtime.package import open_package
from ferryman.runtime.session import open_session
from tests.unit.converter.low_rank.nets import clock
from tests.zoo import low_rank, low_rank_nets, one_way
from tests.zoo.low_rank import FORM, NAMES, make, rows
from tests.zoo.pruned import NETWORKS

LEAST_DB = 60.0
INTERPRETERS = {"executorch", "ai-edge-litert", "tflite-runtime"}


def test_rows_say_what_became_of_a_network(monkeypatch):
    torch.manual_seed(0)
    untrained = NETWORKS["vit"].make().eval()
    monkeypatch.setattr(low_rank, "trained", lambda _: untrained)
    monkeypatch.setattr(low_rank, "STEPS", (("decomposed", FORM, False, 0),))
    dense, thin = rows("vit", clock)
    assert (dense.macs, dense.nbytes, dense.changed) == (1, 1, 0)
    assert thin.macs <= 0.5
    assert thin.nbytes < 0.6
    assert thin.changed > 5


def test_one_way_filters_take_a_fraction():
    _, three = one_way.designed(3)
    _, two = one_way.designed(2)
    assert three.after.nbytes < 0.2 * three.before.nbytes
    assert three.after.macs < 0.15 * three.before.macs
    assert two.after.macs < 0.8 * two.before.macs


def test_waves_move_and_keep_within_bounds():
    torch.manual_seed(0)
    frames = one_way.waves(8, 60)
    assert frames.abs().max() < 10 * frames[:, 0].abs().max()
    moved = (frames[:, 20] - frames[:, 0]).norm()
    assert moved > 0.5 * frames[:, 0].norm()
    inputs, wanted = one_way.pairs(4)
    assert inputs.shape == (4, 2, one_way.SIDE, one_way.SIDE)
    assert wanted.shape == (4, 1, one_way.SIDE, one_way.SIDE)


def test_a_wave_simulator_learns():
    before, _ = one_way.designed(3)
    after = one_way.trained(3, epochs=2, batches=one_way.Waves(20, 16))
    assert one_way.score(after) < 0.5
    assert one_way.score(before) > 0.9


def verified(conversion):
    """Interpreter -> least dB of all variants."""
    return {
        proof.interpreter: min(
            one.sqnr_db
            for variant in conversion.manifest.variants
            for one in variant.verified
            if one.interpreter == proof.interpreter
        )
        for variant in conversion.manifest.variants
        for proof in variant.verified
    }


@pytest.mark.slow
def test_a_wave_simulator_of_one_way_filters_converts_and_is_nearly_as_good(tmp_path):
    module, example = one_way.wave_simulator()
    dense = one_way.score(one_way.trained(None))
    assert one_way.score(module) < 0.12
    assert one_way.score(module) < 2 * dense
    made = convert(module, example, name="waves", output=tmp_path)
    found = verified(made)
    assert INTERPRETERS - {"tflite-runtime"} <= set(found) <= INTERPRETERS
    assert min(found.values()) > LEAST_DB


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_network_of_half_of_the_multiplications_converts_and_keeps_its_score(name, tmp_path):
    network = NETWORKS[name]
    done = make(network, FORM, data=True, epochs=4, timer=clock)
    score = network.score(done.model)
    assert done.after.macs <= 0.5 * done.before.macs
    assert score > network.score(low_rank.trained(name)) - 0.03
    made = convert(done.model, network.example, name=name, output=tmp_path)
    assert min(verified(made).values()) > LEAST_DB
    with open_package(made.path) as package:
        for variant in made.manifest.variants:
            artifact = tmp_path / variant.payload.replace("/", "_")
            artifact.write_bytes(package.read(variant.payload))
            with open_session(artifact, variant.runtime) as session:
                assert network.score(session.run) == pytest.approx(score, abs=3e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factory", "size"), [(low_rank_nets.vgg, (32, 64)), (low_rank_nets.encoder, 1)], ids=["vgg", "encoder"]
)
def test_low_ranks_go_with_fewer_bits(factory, size, tmp_path):
    module, example = factory(size)
    torch.manual_seed(0)
    calibration = [torch.randn_like(example[0]) for _ in range(8)]
    done = factorize(module, FORM, example=example, timer=clock)
    made = convert(
        done.model, example, form=["fp32", "int8", "4bit"], calibration=calibration, name="thin", output=tmp_path,
        sqnr_min_db=10.0,
    )  # fmt: skip
    least = verified(made)
    assert min(least.values()) > 10
    assert {variant.form for variant in made.manifest.variants} == {"fp32", "int8", "4bit"}
