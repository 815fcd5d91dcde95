"""Names of recipes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.converter.quantize.recipe import OBSERVERS, Recipe, is_quantized, parse_recipe
from ferryman.runtime.contracts.errors import CallerError


@given(
    bits=st.sampled_from([8, 4, 2]), group=st.sampled_from([0, 32, 64, 128]), asymmetric=st.booleans(),
    observer=st.sampled_from(OBSERVERS), gptq=st.booleans(), equalize=st.booleans(),
)  # fmt: skip
def test_a_name_says_all(**fields):
    recipe = Recipe(**fields)
    assert is_quantized(recipe.name)
    assert parse_recipe(recipe.name) == recipe


@pytest.mark.parametrize("name", ["int8", "4bit", "2bit", "int8-dynamic", "4bit-g64-asym-gptq", "4bit-channel-minmax"])
def test_examples_are_names(name):
    assert parse_recipe(name).name == name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("3bit", "form '3bit' is not known; quantized forms begin with int8, 4bit, 2bit"),
        ("4bit-fast", "option 'fast' is not known; there are, in this order: dynamic"),
        ("4bit-g32", "what is so anyway; write '4bit'"),
        ("4bit-gptq-gptq", "says something twice"),
        ("4bit-gptq-asym", "in another order; write '4bit-asym-gptq'"),
        ("int8-dynamic-minmax", "nothing for an observer to find"),
        ("4bit-", "option '' is not known"),
    ],
)
def test_what_is_no_name_is_refused(name, said):
    with pytest.raises(CallerError, match=said):
        parse_recipe(name)
