"""Weights as a tree: the same bits as from the plain layout on every instruction set, and no harm from other words."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferryman.converter.kernel_calls import check_tree
from ferryman.converter.tree_bits import pack_tree
from ferryman.runtime import kernels
from tests.support.kernels import BITS, FIRST, LAST, REALS, SIGNS, Case, Refused, call, check, near_duplicates, run
from tests.unit.runtime.native.test_kernels import cases, isa

__all__ = ["isa"]
ISAS = kernels.isas()


@st.composite
def alike(draw):
    """Convolutions of one group: random weights, near duplicates, and channels that are the same."""
    case = draw(cases().filter(lambda case: case.groups == 1))
    prototypes, flips = draw(st.tuples(st.sampled_from([1, 2, 5]), st.sampled_from([0, 1, 3, 40])))
    if draw(st.booleans()):
        seed = draw(st.integers(0, 2**32 - 1))
        weight = near_duplicates(case.weight.shape, prototypes=prototypes, flips=flips, seed=seed)
        case = replace(case, weight=weight)
    return case


@settings(max_examples=150, deadline=None)
@given(
    case=alike(), kind=st.sampled_from([SIGNS, BITS]), layout=st.sampled_from([FIRST, LAST]), threads=st.integers(1, 5)
)
def test_a_tree_gives_the_same_bits(case, kind, layout, threads):
    tree = pack_tree(case.weight).words
    for name in ISAS:
        kernels.load().ferryman_kernels_use(name.encode())
        for bits_out in (False, True):
            plain = run(case, kind, layout, bits_out=bits_out, threads=threads)
            found = run(case, kind, layout, bits_out=bits_out, threads=threads, tree=tree)
            np.testing.assert_array_equal(found, plain, name)
    np.testing.assert_array_equal(run(case, kind, layout, tree=tree), case.expected())


def test_wide_layers_and_several_tiles(isa):
    """More pixels than a task takes, more words than an accumulator holds."""
    random = np.random.default_rng(0)
    for channels, stride, flips in ((256, 1, 2), (64, 2, 200), (96, 1, 0)):
        case = Case(
            x=random.standard_normal((2, channels, 15, 21)).astype(np.float32),
            weight=near_duplicates((80, channels, 3, 3), flips=flips),
            scale=random.standard_normal(80).astype(np.float32),
            bias=random.standard_normal(80).astype(np.float32),
            stride=(stride, stride),
            padding=(1, 1, 1, 1),
        )
        tree = pack_tree(case.weight).words
        np.testing.assert_array_equal(run(case, threads=3, tree=tree), case.expected(), isa)


CASE = Case(
    x=np.ones((1, 40, 5, 5), np.float32),
    weight=near_duplicates((20, 40, 3, 3), prototypes=1),
    scale=np.ones(20, np.float32),
    bias=np.zeros(20, np.float32),
    padding=(1, 0, 0, 1),
)
TREE = pack_tree(CASE.weight)
OUT, WORDS, ROOTS, ENTRIES = (int(number) for number in TREE.words[1:5])
ORDER, PARENTS, DISTANCES, ENDS, ROWS = (5 + OUT * n for n in range(5))
AT = ROWS + ROOTS * WORDS
MASKS, BITS_THERE = AT + ENTRIES, AT + 2 * ENTRIES
LENGTH = "another length than the header"
STEPS = "other numbers of roots and entries than the header"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({0: 0}, "no tree of a kind known here"),
        ({0: 0x32455254}, "no tree of a kind known here"),
        ({1: OUT + 1}, "other numbers of output channels"),
        ({2: WORDS - 1}, "other numbers of output channels"),
        ({3: 0}, "roots must be"),
        ({3: -1}, "roots must be"),
        ({3: ROOTS + 1}, LENGTH),
        ({4: 2**22 + 1}, "entries 2^22 at most"),
        ({4: -1}, "entries 2^22 at most"),
        ({4: ENTRIES - 1}, LENGTH),
        ({ORDER: OUT}, "each output channel once"),
        ({ORDER: -1}, "each output channel once"),
        ({ORDER: int(TREE.words[ORDER + 1])}, "each output channel once"),
        ({PARENTS: 0}, "an earlier step"),
        ({PARENTS + OUT - 1: OUT - 1}, "an earlier step"),
        ({PARENTS + OUT - 1: -2}, "an earlier step"),
        ({PARENTS + OUT - 1: 2**31 - 1}, "an earlier step"),
        ({PARENTS + OUT - 1: -1}, "a root has none"),
        ({ENDS: 1}, "must rise"),
        ({ENDS + OUT - 1: ENTRIES + 1}, "must rise"),
        ({ENDS + OUT - 1: ENTRIES - 1}, STEPS),
        ({ENDS + OUT - 2: -1}, "must rise"),
        ({DISTANCES: 1}, "a distance"),
        ({DISTANCES + OUT - 1: -1}, "a distance"),
        ({DISTANCES + OUT - 1: 2**31 - 1}, "a distance"),
        ({AT: WORDS}, "one of the window's"),
        ({AT + ENTRIES - 1: -1}, "one of the window's"),
        ({AT: -(2**31)}, "one of the window's"),
        ({MASKS: 0, BITS_THERE: 0}, "mask must have a bit"),
        ({BITS_THERE: -1}, "mask must have a bit"),
    ],
)
def test_words_that_are_no_tree_are_refused(changes, message):
    words = TREE.words.copy()
    check_tree(CASE.conv(), words.ctypes.data, words.size)
    for place, value in changes.items():
        words[place] = value
    with pytest.raises(Refused, match=re.escape(message)):
        check_tree(CASE.conv(), words.ctypes.data, words.size)
    with pytest.raises(Refused, match=re.escape(message)):
        run(CASE, tree=words)


@pytest.mark.parametrize("length", [-(2**63), -1, 0, 1, 4, 5, TREE.words.size - 1, TREE.words.size + 1, 2**63 - 1])
def test_another_length_is_refused(length):
    with pytest.raises(Refused, match=r"tree: the weights (are no tree|have another length)"):
        check_tree(CASE.conv(), TREE.words.ctypes.data, length)


def test_groups_and_real_activations_take_no_tree():
    grouped = replace(CASE, weight=CASE.weight[:, :20], groups=2)
    for conv in (CASE.conv(REALS), grouped.conv()):
        with pytest.raises(Refused, match="tree: there must be one group, and signs or bits"):
            check_tree(conv, TREE.words.ctypes.data, TREE.words.size)


words_near = st.one_of(st.integers(-3, 40), st.integers(-(2**31), 2**31 - 1))


@settings(max_examples=400, deadline=None)
@given(
    changes=st.dictionaries(st.integers(0, TREE.words.size - 1), words_near, max_size=4),
    masks=st.none() | st.integers(0, 2**32 - 1),
    cut=st.none() | st.integers(0, TREE.words.size),
    kind=st.sampled_from([SIGNS, BITS]),
    bits_out=st.booleans(),
)
def test_any_words_are_refused_or_computed_within_their_sizes(changes, masks, cut, kind, bits_out):
    """Guard words around every buffer must survive; what passes the check runs, whatever numbers it gives."""
    words = TREE.words.copy()
    if masks is not None:  # passes, and does not hold together
        random = np.random.default_rng(masks)
        words[AT:MASKS] = random.integers(0, WORDS, ENTRIES)
        words[MASKS:BITS_THERE] = -1
        words[BITS_THERE:] = random.integers(-(2**31), 2**31, ENTRIES)
    for place, value in changes.items():
        words[place] = value
    words = words[:cut]
    conv = CASE.conv(kind, bits_out=bits_out)
    sizes = check(conv)
    guard = np.full(64, 0x5A5A5A5A, np.int32)

    def guarded(array):
        return np.concatenate([guard, array, guard])

    parameters = [guarded(np.ones(OUT, np.int32))] * 3
    arrays = [guarded(np.ones(sizes.input, np.int32)), guarded(words), *parameters]
    output = guarded(np.zeros(sizes.output, np.int32))
    passed = True
    try:
        check_tree(conv, arrays[1][64:].ctypes.data, words.size)
    except Refused:
        passed = False
    try:
        call(conv, [array[64:] for array in arrays], output[64:], tree_words=words.size)
        assert passed
    except Refused:
        assert not passed
    for array in (*arrays, output):
        np.testing.assert_array_equal(array[:64], guard)
        np.testing.assert_array_equal(array[-64:], guard)


def test_a_tree_that_does_not_hold_together_at_its_largest(isa):
    """Every count moved as far as entries can move it: nothing overflows."""
    out, entries = 2, 1 << 22
    case = Case(
        x=np.ones((1, 64, 3, 3), np.float32),
        weight=np.ones((out, 64, 3, 3), np.float32),
        scale=np.ones(out, np.float32),
        bias=np.zeros(out, np.float32),
        padding=(1, 1, 1, 1),
    )
    header = [0x31455254, out, 18, 1, entries, 0, 1, -1, 0, 0, 0, 0, entries]
    ones = np.full(entries, -1, np.int32)
    tree = np.concatenate([header, np.zeros(18), np.zeros(entries), ones, np.zeros(entries)]).astype(np.int32)
    assert np.isfinite(run(case, tree=tree)).all(), isa
