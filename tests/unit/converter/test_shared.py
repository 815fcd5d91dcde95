from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from ferryman.converter import api as _api  # noqa: F401  # the toolchains, quietly
from ferryman.converter.backends import BACKENDS
from ferryman.converter.backends.executorch_shared import share_constants
from ferryman.converter.capture import capture
from ferryman.converter.forms import find_form
from ferryman.converter.quantize.recipe import Recipe
from ferryman.converter.quiet import quiet
from ferryman.converter.shared import shared_table, shared_weights
from ferryman.converter.source import make_source
from ferryman.converter.verify import interpreters, make_references, verify

WORDS, DIM, LENGTH, BLOCKS = 64, 64, 8, 3
LOWERED = 2
"""Blocks of what is lowered; `test_a_folded_decoder_takes_less_than_half` lowers six."""
IDS = (torch.arange(LENGTH)[None] * 5 % WORDS,)
MOST = 0.45
"""Of the unfolded decoder's bytes that one of six shared blocks may take, the issue says."""


class Rms(nn.Module):
    """A norm that torch has no one operator for."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(DIM))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Block(nn.Module):
    def __init__(self, norm: type) -> None:
        super().__init__()
        self.norm1, self.norm2 = (norm() if norm is Rms else norm(DIM) for _ in range(2))
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.up, self.down = nn.Linear(DIM, 4 * DIM), nn.Linear(4 * DIM, DIM)

    def forward(self, x):
        query, key, value = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.out(torch.softmax(query @ key.transpose(1, 2) / math.sqrt(DIM), -1) @ value)
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Decoder(nn.Module):
    """Blocks; `shared`: "blocks" are one, "weights" are one's but for norms, "no"."""

    def __init__(
        self, shared: str = "weights", norm: type = nn.LayerNorm, *, tied: bool = True, blocks: int = BLOCKS
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.norm = nn.Embedding(WORDS, DIM), nn.LayerNorm(DIM)
        several = [Block(norm) for _ in range(blocks)]
        for block in several[1:] if shared == "weights" else []:
            for name in ("qkv", "out", "up", "down"):
                layer, first = getattr(block, name), getattr(several[0], name)
                layer.weight, layer.bias = first.weight, first.bias
        self.blocks = nn.Sequential(*(several[:1] * blocks if shared == "blocks" else several))
        self.head = nn.Linear(DIM, WORDS, bias=False)
        if tied:
            self.head.weight = self.table.weight
        for part in self.modules():
            if isinstance(part, nn.LayerNorm | Rms):
                nn.init.normal_(part.weight, 1, 0.2)
        self.eval()

    def forward(self, ids):
        return self.head(self.norm(self.blocks(self.table(ids))))


def lower(model: nn.Module, form: str, runtime: str, x=IDS) -> bytes:
    with quiet():
        captured = capture(make_source(model, x))
        found = find_form(form)
        program, _ = found.rewrite(captured, [captured.example])
        return BACKENDS[runtime].lower(program).data


@functools.cache
def artifact(form: str, runtime: str, blocks: int, norm: type, *, tied: bool) -> bytes:
    """Of a decoder of so many blocks, whose weights are shared; asked for in full, for the cache."""
    return lower(Decoder(norm=norm, tied=tied, blocks=blocks), form, runtime)


FORMS = {"fp32": 4.0, "4bit": 0.5}
"""And bytes that a weight takes at least."""
SLOW_FORMS = {
    "int8": 1.0,
    "4bit-asym": 0.5,
    "int8-blocks": 1.0,
    "4bit-channel": 0.5,
    "4bit-blocks": 0.5,
    "int8-equalize": 1.0,
    "4bit-gptq": 0.5,
}


@pytest.mark.parametrize("runtime", BACKENDS)
@pytest.mark.parametrize("form", [*FORMS, *(pytest.param(one, marks=pytest.mark.slow) for one in SLOW_FORMS)])
def test_an_artifact_holds_shared_weights_once(form, runtime):
    """What another reader of each matrix costs is operators, norms and biases, and no matrix."""
    whole, least = (len(artifact(form, runtime, blocks, nn.LayerNorm, tied=True)) for blocks in (LOWERED, 1))
    copy = 12 * DIM * DIM * (FORMS | SLOW_FORMS)[form]
    assert whole - least < 0.7 * (LOWERED - 1) * copy


@pytest.mark.parametrize("runtime", BACKENDS)
@pytest.mark.parametrize("norm", [nn.LayerNorm, Rms, nn.RMSNorm])
def test_norms_of_their_own_do_not_pull_shared_weights_apart(norm, runtime):
    model = Decoder(norm=norm, blocks=LOWERED)
    data = artifact("fp32", runtime, LOWERED, norm, tied=True)
    for part in (model.table, *(getattr(model.blocks[0], name) for name in ("qkv", "out", "up", "down"))):
        held = part.weight.detach().numpy().tobytes()
        assert data.count(held) == 1
    with quiet():
        captured = capture(make_source(model, IDS))
        references = make_references(captured)
    _verify(data, runtime, references, 60.0)


def _verify(data, runtime, references, least):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{BACKENDS[runtime].suffix}"
        path.write_bytes(data)
        verify(path, "model", runtime, references, least, interpreters(runtime))


@pytest.mark.parametrize("runtime", BACKENDS)
@pytest.mark.parametrize("form", ["fp32", "4bit"])
def test_a_tied_table_is_held_once(form, runtime):
    tied, free = (len(artifact(form, runtime, 1, nn.LayerNorm, tied=tied)) for tied in (True, False))
    assert free - tied > 0.9 * WORDS * DIM * (4 if form == "fp32" else 0.5)


@pytest.mark.parametrize("form", ["4bit-gptq", "mixed-5b", "mixed-20db-gptq"])
def test_shared_weights_are_rounded_once_for_all_uses(form):
    with quiet():
        captured = capture(make_source(Decoder(), IDS))
        program, layers = find_form(form).rewrite(captured, [captured.example])
    held = [value for value in program.program.state_dict.values() if value.dtype == torch.int8 and value.dim() > 1]
    assert len(held) == 5  # four of a block, and the table
    bits: dict[str, set[str]] = {}
    for layer in layers:
        bits.setdefault(layer.path.rpartition(".")[2].replace("head", "table"), set()).add(layer.form)
    assert sorted(bits) == ["down", "out", "qkv", "table", "up"]
    assert all(len(forms) == 1 for forms in bits.values())


def test_what_a_recipe_says_of_one_use_holds_for_all():
    recipe = Recipe(bits=4, group=32, layers={"blocks.1.up": 8, "head": 32})
    with quiet():
        captured = capture(make_source(Decoder(), IDS))
        _, layers = find_form(recipe).rewrite(captured, [captured.example])
    forms = {layer.path: layer.form for layer in layers}
    assert {forms[f"blocks.{index}.up"] for index in range(BLOCKS)} == {"int8"}
    assert {forms["table"], forms["head"]} == {"fp32"}
    assert {forms[f"blocks.{index}.down"] for index in range(BLOCKS)} == {"4bit"}


def test_what_is_shared_is_told():
    with quiet():
        weights = shared_weights(capture(make_source(Decoder(), IDS)))
        blocks = shared_weights(capture(make_source(Decoder("blocks", tied=False), IDS)))
        none = shared_weights(capture(make_source(Decoder("no", tied=False), IDS)))
    assert [one.name for one in weights] == [
        *("blocks.0.down.weight", "blocks.0.up.weight", "blocks.0.qkv.weight"),
        *("blocks.0.out.weight", "table.weight"),
    ]
    assert weights[0].nbytes == 4 * DIM * DIM * 4
    assert weights[0].readers == tuple(f"blocks.{index}.down" for index in range(BLOCKS))
    assert weights[-1].readers == ("table", "head")
    assert {len(one.readers) for one in blocks} == {BLOCKS}
    assert none == ()
    assert "table.weight  16,384 bytes, read by table, head" in shared_table(weights)
    assert "read by blocks.0.down, blocks.1.down, blocks.2.down" in shared_table(weights)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", BACKENDS)
@pytest.mark.parametrize("form", ["fp32", "4bit"])
def test_a_folded_decoder_takes_less_than_half(form, runtime):
    from tests.zoo.models import decoder_of_six

    model, x = decoder_of_six()
    whole = lower(model, form, runtime, x)
    for index in range(1, 6):
        model.blocks[index] = model.blocks[0]
    assert len(lower(model, form, runtime, x)) <= MOST * len(whole)


def test_other_programs_stay_as_they_are():
    data = lower(nn.Sequential(nn.Linear(64, 64)).eval(), "fp32", "executorch", (torch.ones(1, 64),))
    assert share_constants(data) == data
