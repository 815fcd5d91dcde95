"""Binary networks on both runtimes and all three interpreters: trained, converted, pushed, profiled, reported."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ferryman import convert
from ferryman.profiler.report import table
from ferryman.profiler.runner import profile_package
from ferryman.runtime import kernels
from ferryman.runtime.contracts.measurement import ProfileSpec
from ferryman.runtime.install import install
from ferryman.runtime.isolated import IsolatedSession
from ferryman.runtime.slots import SlotStore
from tests.e2e import digits
from tests.support.interpreters import INTERPRETERS, python_for
from tests.zoo import binary

pytestmark = pytest.mark.slow
BAR_DB = 60.0
ACCURACY_LOST_MAX = 0.05


@pytest.mark.parametrize(("factory", "layers", "share"), [("resnet18_binary", 16, 0.06), ("bipft_encoder", 12, 0.35)])
def test_a_network_equals_eager_on_three_interpreters(factory, layers, share, tmp_path):
    module, inputs = getattr(binary, factory)()
    made = convert(module, inputs, output=tmp_path, name=factory, form="binary")
    proofs = [proof for variant in made.manifest.variants for proof in variant.verified]
    assert {proof.interpreter for proof in proofs} == set(INTERPRETERS)
    assert min(proof.sqnr_db for proof in proofs) >= BAR_DB
    dense_bytes = 4 * sum(parameter.numel() for parameter in module.parameters())
    sizes = {payload.path: payload.size_bytes for payload in made.manifest.payloads}
    for variant in made.manifest.variants:
        assert sum(variant.lowering.kernels.values()) == layers
        assert variant.requires.operators == kernels.VERSION
        assert sizes[variant.payload] <= share * dense_bytes


def predictions(made, root, images):
    """Of every installed variant, on every interpreter: largest logit of each image."""
    store = SlotStore(root)
    directory = store.directory(store.read_state().active.name)
    for variant in made.manifest.variants:
        for interpreter in variant.requires.interpreters:
            python = python_for(interpreter)
            artifact = directory / variant.payload
            with IsolatedSession(artifact, variant.runtime, interpreter=interpreter, python=python) as session:
                yield interpreter, np.array([session.run([image.numpy()[None]])[0].argmax() for image in images])


@pytest.mark.parametrize(
    ("train", "images"),
    [
        (binary.train_digits_binary, lambda: digits.images()[1]),
        (binary.train_resnet18, lambda: binary.digits_as_images()[1]),
    ],
    ids=["digits CNN", "ResNet-18"],
)
def test_the_whole_way(train, images, tmp_path, capsys):
    trained = train()
    test_images = images()
    made = convert(trained.binary, (test_images[:1],), output=tmp_path, name="net", form="binary")
    install(made.path, tmp_path / "root")
    with torch.no_grad():
        expected = trained.binary(test_images).argmax(1).numpy()
    found = dict(predictions(made, tmp_path / "root", test_images[:100]))
    assert set(found) == set(INTERPRETERS)
    for interpreter, answers in found.items():
        np.testing.assert_array_equal(answers, expected[:100], interpreter)
    measurements = profile_package(made.path, ProfileSpec(runs=20, warmup_runs=2))
    assert all(m.after.versions["ferryman kernels"] == f"{kernels.VERSION} {kernels.isa()}" for m in measurements)
    report = table([("here", measurement) for measurement in measurements])
    assert report.count("binary") >= len(measurements)
    assert trained.binary_accuracy >= trained.dense_accuracy - ACCURACY_LOST_MAX
    with capsys.disabled():
        print(f"\n  test accuracy: binary {trained.binary_accuracy:.1%}, fp32 {trained.dense_accuracy:.1%}")
