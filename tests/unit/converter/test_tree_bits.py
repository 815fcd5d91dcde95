"""Weights along a tree, packed and unpacked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferryman.converter import tree_bits
from ferryman.converter.bits import pack_weights
from ferryman.converter.tree_bits import pack_tree, plain_words, unpack_tree
from ferryman.runtime.contracts.errors import CallerError
from tests.support.kernels import near_duplicates


@settings(max_examples=100, deadline=None)
@given(
    out=st.integers(1, 40),
    channels=st.integers(1, 40),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    prototypes=st.integers(1, 40),
    flips=st.integers(0, 9),
    seed=st.integers(0, 2**32 - 1),
)
def test_packing_loses_nothing(out, channels, kernel, prototypes, flips, seed):
    weight = near_duplicates((out, channels, *kernel), prototypes=prototypes, flips=flips, seed=seed)
    tree = pack_tree(weight)
    rows = (weight >= 0).transpose(0, 2, 3, 1).reshape(out, -1)
    np.testing.assert_array_equal(unpack_tree(tree.words, rows.shape[1]), rows)
    assert 1 <= tree.roots <= out
    assert tree.operations <= tree.operations_plain
    assert plain_words(out, rows.shape[1]) == pack_weights(weight, 1).size


def test_near_duplicates_take_few_entries_and_random_weights_none():
    alike = pack_tree(near_duplicates((64, 64, 3, 3), prototypes=4, flips=1))
    assert alike.roots == 4
    assert alike.entries <= 2 * 60
    assert alike.words.size < plain_words(64, 576)
    random = pack_tree(np.random.default_rng(0).standard_normal((64, 64, 3, 3)))
    assert (random.roots, random.entries) == (64, 0)
    assert random.operations == random.operations_plain


def test_the_same_weights_give_the_same_words():
    weight = near_duplicates((64, 64, 3, 3), flips=3)
    assert pack_tree(weight).words.tobytes() == pack_tree(weight.copy()).words.tobytes()


def test_too_many_entries(monkeypatch):
    monkeypatch.setattr(tree_bits, "_ENTRIES_MAX", 3)
    with pytest.raises(CallerError, match="a tree may have 3 entries, found"):
        pack_tree(near_duplicates((64, 64, 3, 3)))


def test_words_that_hold_no_tree():
    words = pack_tree(near_duplicates((8, 8, 3, 3))).words
    for bad in (words[:3], words + 1):
        with pytest.raises(CallerError, match="hold no tree"):
            unpack_tree(bad, 72)
    for bad, depth in ((words[:-1], 72), (words, 99)):
        with pytest.raises(CallerError, match="another length"):
            unpack_tree(bad, depth)
    words = words.copy()
    words[5 + 8] = 0
    with pytest.raises(CallerError, match="no earlier step"):
        unpack_tree(words, 72)
