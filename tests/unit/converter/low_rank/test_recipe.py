"""Names of low-rank recipes."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.converter.low_rank.recipe import HOWS, UNITS, LowRank, check_low_rank, is_low_rank, parse_low_rank
from ferryman.runtime.contracts.errors import CallerError


@given(amount=st.integers(1, 99), unit=st.sampled_from(UNITS), how=st.sampled_from(HOWS))
def test_a_name_says_all(**fields):
    recipe = LowRank(**fields)
    assert is_low_rank(recipe.name)
    assert parse_low_rank(recipe.name) == recipe
    assert recipe.needs_data == (recipe.how != "decomposed")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("thin-50flops", "low-rank forms begin with lowrank"),
        ("lowrank", "needs its budget next"),
        ("lowrank-", "needs its budget next"),
        ("lowrank-50", "needs its budget next"),
        ("lowrank-0flops", "1 to 99"),
        ("lowrank-05flops", "needs its budget next"),
        ("lowrank-100flops", "1 to 99"),
        ("lowrank-\u0665\u0660flops", "needs its budget next"),
        ("lowrank-50watts", "energy, flops, bytes, latency, db"),
        ("lowrank-trp", "for example lowrank-50flops"),
        ("lowrank-50flops-fast", "option 'fast' is not known; there are learned or trp"),
        ("lowrank-50flops-decomposed", "option 'decomposed' is not known"),
        ("lowrank-50flops-trp-trp", "says something twice"),
        ("lowrank-50flops-trp-learned", "not both"),
        ("lowrank-50flops-", "option '' is not known"),
    ],
)
def test_what_is_no_name_is_refused(name, said):
    with pytest.raises(CallerError, match=said):
        parse_low_rank(name)


@pytest.mark.parametrize("fields", [{"amount": 0}, {"amount": 100}, {"amount": True}, {"amount": 5.5}, {"how": "so"}])
def test_recipes_from_python_are_checked(fields):
    with pytest.raises(CallerError, match=r"cannot be|is 1 to 99"):
        check_low_rank(LowRank(**{"amount": 50, "unit": "flops", **fields}))


def test_names_are_read_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from ferryman.converter.low_rank.recipe import parse_low_rank\n"
        "assert parse_low_rank('lowrank-50flops-trp').needs_data"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
