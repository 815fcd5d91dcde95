"""Names of sparsities."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.converter.prune.unstructured.recipe import (
    Pattern,
    Sparsity,
    check_sparsity,
    is_sparse,
    parse_sparsity,
)
from ferryman.runtime.contracts.errors import CallerError


@given(percent=st.integers(1000, 99999), layer=st.booleans(), shrink=st.booleans())
def test_a_name_says_all(percent, layer, shrink):
    sparsity = Sparsity(percent=percent / 1000, layer=layer, shrink=shrink)
    assert is_sparse(sparsity.name)
    assert parse_sparsity(sparsity.name) == sparsity


@pytest.mark.parametrize("of", [4, 8])
def test_a_pattern_has_a_name(of):
    for kept in range(1, of):
        sparsity = Sparsity(pattern=Pattern(kept=kept, of=of), shrink=True)
        assert sparsity.name == f"sparse-{kept}:{of}-shrink"
        assert parse_sparsity(sparsity.name) == sparsity
        assert sparsity.share == 1 - kept / of


@pytest.mark.parametrize("name", ["sparse-90", "sparse-2:4", "sparse-97.5-layer-shrink", "sparse-1", "sparse-99.999"])
def test_a_name_is_read_and_written_back(name):
    assert parse_sparsity(name).name == name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dense-90", "form 'dense-90' is not known; there are: sparse-PERCENT or sparse-N:M"),
        ("sparse", "needs its amount next: 1 to 99.999"),
        ("sparse-", "needs its amount next"),
        ("sparse-layer", "needs its amount next"),
        ("sparse-100", "needs its amount next"),
        ("sparse-\u0669\u0660", "needs its amount next"),
        ("sparse-0", "1 to below 100, with at most 3 digits after the point, found 0"),
        ("sparse-90-fast", "option 'fast' is not known; there are, in this order: layer, shrink"),
        ("sparse-90-", "option '' is not known"),
        ("sparse-90-shrink-layer", "in another order; write 'sparse-90-layer-shrink'"),
        ("sparse-90-layer-layer", "says something twice, or what is so anyway; write 'sparse-90-layer'"),
        ("sparse-90.0", "write 'sparse-90'"),
        ("sparse-4:4", "a pattern is N:4 or N:8 with N above 0 and below the other, found 4:4"),
        ("sparse-0:4", "found 0:4"),
        ("sparse-2:6", "found 2:6"),
        ("sparse-2:4-layer", "holds in each layer anyway; write 'sparse-2:4'"),
    ],
)
def test_what_is_no_name_is_refused(name, said):
    with pytest.raises(CallerError, match=said):
        parse_sparsity(name)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "either percent or pattern"),
        ({"percent": 50.0, "pattern": Pattern(kept=2, of=4)}, "either percent or pattern"),
        ({"percent": 33.33333}, "at most 3 digits after the point, found 33.33333"),
        ({"percent": float("nan")}, "found nan"),
        ({"percent": "many"}, "this sparsity cannot be"),
        ({"percent": 90.0, "layers": {"head": 100.0}}, r"layers\['head'\] is 0 to below 100"),
        ({"percent": 90.0, "layers": {"head": -1.0}}, r"layers\['head'\] is 0 to below 100"),
    ],
)
def test_what_does_not_go_together_is_refused(fields, said):
    with pytest.raises(CallerError, match=said):
        check_sparsity(Sparsity(**fields))


def test_names_are_read_without_torch():
    code = (
        "import sys; from ferryman.converter.prune.unstructured.recipe import parse_sparsity; "
        "parse_sparsity('sparse-90'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
