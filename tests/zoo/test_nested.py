"""Networks of the zoo, nested: little training, every sub-network proven."""

from __future__ import annotations

import pytest
import torch

from ferryman.converter.api import convert
from ferryman.converter.prune.budget import count
from tests.zoo.nested import nested
from tests.zoo.pruned_nets import CharacterDecoder, ViT
from tests.zoo.test_pruned import small

FORMS = {
    "decoder": "nested-25-50-100",
    "vit": "nested-50-100",
    "mobilenet": "nested-50-100",
    "resnet": "nested-50-100-ordered",
}
"""Fewer levels than `tests.zoo.nested` has: each is lowered, and proven, on every runtime."""
FEWER_BLOCKS = {"decoder": lambda: CharacterDecoder(blocks=2), "vit": lambda: ViT(blocks=2)}


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_a_network_nests_trains_and_converts(name, tmp_path):
    network = small(name)
    torch.manual_seed(0)
    model = FEWER_BLOCKS.get(name, network.make)().eval()
    found = nested(network, model, FORMS[name], epochs=1)
    variants = found.variants()
    macs = [count(module, network.example).macs for module in variants.values()]
    assert macs == sorted(set(macs), reverse=True)
    made = convert(variants, network.example, output=tmp_path, name=name)
    sizes = {one.path: one.size_bytes for one in made.manifest.payloads}
    alone = convert(found.model, network.example, output=tmp_path, name="alone").manifest
    for payload in alone.payloads:
        if payload.path.startswith("artifacts/"):
            assert sizes[payload.path] < 1.3 * payload.size_bytes  # copies: 1.5 and more
    assert all(proof.sqnr_db > 60 for variant in made.manifest.variants for proof in variant.verified)
