"""When a layer's channels are computed along a tree."""

from __future__ import annotations

import numpy as np
import pytest

from ferryman.converter import channel_order
from ferryman.converter.channel_order import FASTER, Measured, choose_order
from ferryman.converter.kernel_calls import BITS, CHANNELS_FIRST, REALS, SIGNS, Conv
from ferryman.converter.tree_bits import pack_tree
from ferryman.runtime import kernels
from tests.support.kernels import near_duplicates

ALIKE = near_duplicates((256, 256, 3, 3))


def conv(weight, kind=SIGNS, *, bits_out=0, groups=1, size=14):
    out, channels, kernel_h, kernel_w = weight.shape
    numbers = (1, size, size, channels * groups, out, kernel_h, kernel_w, 1, 1, 1, 1, 1, 1, 1, 1)
    return Conv(*numbers, groups, 0, kind, bits_out, CHANNELS_FIRST)


@pytest.mark.parametrize(("kind", "bits_out"), [(SIGNS, 0), (BITS, 1)])
def test_near_duplicates_go_along_a_tree(kind, bits_out):
    chosen = choose_order(ALIKE, conv(ALIKE, kind, bits_out=bits_out))
    assert chosen.speedup > 1
    assert chosen.tree.words.size < chosen.plain_words
    assert chosen.tree.operations * 10 < chosen.tree.operations_plain
    assert chosen.describe().startswith("channels along a spanning tree: 1")


@pytest.fixture
def unmeasured(monkeypatch):
    def fail(*_):
        raise AssertionError("measured")

    monkeypatch.setattr(channel_order, "measure", fail)


@pytest.mark.usefixtures("unmeasured")
def test_what_cannot_gain_is_not_measured(monkeypatch):
    random = np.random.default_rng(0).standard_normal((64, 64, 3, 3))
    assert choose_order(random, conv(random)) is None
    assert choose_order(ALIKE, conv(ALIKE, REALS)) is None
    assert choose_order(ALIKE[:, :128], conv(ALIKE[:, :128], groups=2)) is None
    assert choose_order(ALIKE[:1], conv(ALIKE[:1])) is None
    monkeypatch.setattr(channel_order, "_CHANNELS_MAX", 200)
    assert choose_order(ALIKE, conv(ALIKE)) is None


@pytest.mark.usefixtures("unmeasured")
def test_without_the_library_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(kernels, "version", lambda: None)
    assert choose_order(ALIKE, conv(ALIKE)) is None


@pytest.mark.parametrize(
    ("speedup", "plain", "better"),
    [
        (FASTER, 0, True),
        (FASTER - 0.01, 0, False),
        (1.0, 10**6, True),
        (0.99, 10**6, False),
    ],
)
def test_near_ties_fall_to_plain(speedup, plain, better):
    assert Measured(tree=pack_tree(ALIKE), speedup=speedup, plain_words=plain).better is better
