"""Every model of the zoo converts to both runtimes and holds the bar on all three interpreters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

from ferryman.converter.api import convert
from ferryman.runtime.contracts.errors import ModelError
from ferryman.runtime.isolated import IsolatedSession
from ferryman.runtime.package import open_package
from tests.support.interpreters import INTERPRETERS, python_for
from tests.zoo import models

BAR_DB = 60.0
NAMES = ("mobilenet_v2", "resnet20", "decoder", "lstm", "sentence_encoder")
IMAGE_NETS = ("mobilenet_v2", "resnet20")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=NAMES)
def conversion(request, tmp_path_factory):
    return convert(f"tests.zoo.models:{request.param}", output=tmp_path_factory.mktemp(request.param))


def _sessions(conversion, folder):
    """Each artifact of a package on each interpreter it was proven on."""
    with open_package(conversion.path) as package:
        for variant in package.manifest.variants:
            artifact = folder / variant.payload.replace("/", "_")
            artifact.write_bytes(package.read(variant.payload))
            for interpreter in variant.requires.interpreters:
                python = python_for(interpreter)
                with IsolatedSession(artifact, variant.runtime, interpreter=interpreter, python=python) as session:
                    yield session


def test_converts_and_equals_eager_on_three_interpreters(conversion, tmp_path):
    proofs = {proof.interpreter: proof for v in conversion.manifest.variants for proof in v.verified}
    assert set(proofs) == set(INTERPRETERS)
    assert all(proof.sqnr_db >= BAR_DB for proof in proofs.values())
    assert all(proof.vectors == 5 for proof in proofs.values())

    lowering = {variant.runtime: variant.lowering for variant in conversion.manifest.variants}["executorch"]
    if conversion.manifest.name in IMAGE_NETS:
        assert lowering.fallback == {}
        assert lowering.delegates == 1
    if conversion.manifest.name == "sentence_encoder":
        _embeddings_equal_eager(_sessions(conversion, tmp_path))
    if conversion.manifest.name == "lstm":
        _states_follow_eager(_sessions(conversion, tmp_path))


def _embeddings_equal_eager(sessions):
    module, _ = models.sentence_encoder()
    for session in sessions:
        for text in models.SENTENCES:
            inputs = models.tokens(text)
            expected = module(*inputs).detach().numpy()[0]
            found = session.run([tensor.numpy() for tensor in inputs])[0][0]
            cosine = float(expected @ found / np.linalg.norm(expected) / np.linalg.norm(found))
            assert cosine > 0.9999, (session.interpreter, text)


def _states_follow_eager(sessions):
    module, example = models.lstm()
    for session in sessions:
        state = example["state"]
        carried = [tensor.numpy() for tensor in tree_leaves(state)]
        generator = torch.Generator().manual_seed(0)
        for _ in range(20):
            frames = torch.randn(1, 5, 16, generator=generator)
            expected = module(frames, state)
            scores, *carried = session.run([frames.numpy(), *carried])
            state = expected["state"]
            np.testing.assert_allclose(scores, expected["scores"].detach().numpy(), atol=1e-5)


def test_dynamic_batch_runs_at_every_size_on_executorch(tmp_path):
    module, _, _ = models.resnet20_dynamic()
    made = convert("tests.zoo.models:resnet20_dynamic", to=["executorch"], output=tmp_path)

    for session in _sessions(made, tmp_path):
        for batch in range(1, 9):
            images = torch.randn(batch, 3, 32, 32)
            found = session.run([images.numpy()])[0]
            np.testing.assert_allclose(found, module(images).detach().numpy(), atol=1e-3)


def test_a_dynamic_batch_that_litert_cannot_lower_is_refused_with_advice(tmp_path):
    class TwoInputs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(8, 4)

        def forward(self, x, y):
            return self.linear(x) + y

    batch = torch.export.Dim("batch", min=1, max=8)
    with pytest.raises(ModelError, match="fix the shapes, or use --to executorch"):
        convert(
            TwoInputs().eval(),
            (torch.randn(2, 8), torch.randn(2, 4)),
            dynamic_shapes=({0: batch}, {0: batch}),
            to=["tflite"],
            output=tmp_path,
        )
    assert not list(tmp_path.iterdir())


def test_the_same_model_gives_the_same_package_twice(tmp_path):
    first = convert("tests.zoo.models:lstm", output=tmp_path / "a")
    second = convert("tests.zoo.models:lstm", output=tmp_path / "b")

    assert first.path.read_bytes() == second.path.read_bytes()
