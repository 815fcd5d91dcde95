"""Several models in one package: each proven by itself, weights that they share stored once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ferryman.converter.api import convert
from ferryman.converter.nested.network import nest
from ferryman.runtime.contracts.errors import CallerError, ModelError
from ferryman.runtime.golden import check_golden
from ferryman.runtime.install import install
from ferryman.runtime.package import open_package
from ferryman.runtime.session import open_session
from ferryman.runtime.slots import SlotStore

ROWS = torch.randn(2, 64, generator=torch.Generator().manual_seed(1))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)).eval()


@pytest.fixture(scope="module")
def nested():
    return nest(network(), "nested-25-50-100", example=ROWS)


@pytest.fixture(scope="module")
def made(nested, tmp_path_factory):
    return convert(nested.variants(), ROWS, output=tmp_path_factory.mktemp("nested"), name="nested")


def test_weights_are_stored_once(made, tmp_path):
    alone = convert(network(), ROWS, output=tmp_path, name="alone").manifest
    sizes = {one.path: one.size_bytes for one in made.manifest.payloads}
    for payload in alone.payloads:
        if payload.path.startswith("artifacts/"):
            assert sizes[payload.path] < payload.size_bytes + 12_000  # of 134,000: graphs of three, and no weights
    assert [one.name for one in made.manifest.variants] == [
        f"{runtime}-fp32-{level}" for runtime in ("executorch", "tflite") for level in (100, 50, 25)
    ]


def test_each_is_proven_against_itself(made, nested):
    for variant in made.manifest.variants:
        assert variant.share == pytest.approx(int(variant.entry) / 100)
        assert len(variant.verified) == (1 if variant.runtime == "executorch" else len(variant.verified))
        assert all(proof.sqnr_db > 100 for proof in variant.verified)
        assert variant.golden == (() if variant.entry == "100" else (f"golden/{variant.entry}/0.msgpack",))
    with open_package(made.path) as package:
        paths = {path for variant in package.manifest.variants for path in (*package.manifest.golden, *variant.golden)}
        outputs = {path: package.read(path) for path in paths}
        assert {one.path for one in package.manifest.payloads if one.path.startswith("golden/")} == paths
    assert len(set(outputs.values())) == len(outputs) == 4


def test_a_device_takes_the_largest_that_it_has_time_for(made, tmp_path, nested):
    installed = install(made.path, tmp_path / "root", pick="largest-10000ms")
    assert installed.active.variant.endswith("-100")
    assert all(one.memory_bytes > 10**6 for one in installed.golden)
    active = SlotStore(tmp_path / "root").active()
    assert {one.variant for one in check_golden(active.directory, active.manifest)} >= {
        "executorch-fp32-25",
        "executorch-fp32-100",
    }
    for variant in active.manifest.variants:
        with open_session(active.directory / variant.payload, variant.runtime, entry=variant.entry) as session:
            (found,) = session.run([ROWS.numpy()])
        expected = nested.variant(int(variant.entry))(ROWS).detach()
        assert torch.allclose(torch.from_numpy(found), expected, atol=1e-4)


def test_quantized_ones_are_compared_each_with_itself(nested, tmp_path):
    found = convert(nested.variants(), ROWS, output=tmp_path, name="nested", form="4bit", to=("tflite",))
    assert [one.form for one in found.compared[:: len(found.manifest.variants[0].verified)]] == [
        "4bit-100",
        "4bit-50",
        "4bit-25",
    ]
    assert {one.payload for one in found.manifest.variants} == {"artifacts/4bit.tflite"}


@pytest.mark.parametrize(
    ("models", "error", "said"),
    [
        ({}, CallerError, "the dict of them is empty"),
        ({"a/b": network()}, CallerError, "a variant is named with 1 to 40"),
        ({1: network()}, CallerError, "not 1"),
        ({"a": network(), "b": nn.Linear(64, 3).eval()}, ModelError, "b is no variant of the model that a is"),
        ({"a": network(), "b": network().train()}, ModelError, "is in training mode"),
        ({"a": 3}, CallerError, "expected an nn.Module"),
    ],
)
def test_what_are_no_variants_is_refused(models, error, said, tmp_path):
    with pytest.raises(error, match=said):
        convert(models, ROWS, output=tmp_path)


def test_a_form_that_is_measured_takes_one_alone(nested, tmp_path):
    with pytest.raises(CallerError, match="form sparse is measured one program at a time"):
        convert(nested.variants(), ROWS, output=tmp_path, form="sparse")
